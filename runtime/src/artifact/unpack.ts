import { createHash } from "node:crypto";
import {
  closeSync,
  createReadStream,
  fdatasyncSync,
  ftruncateSync,
  openSync,
  statfsSync,
  writeSync,
} from "node:fs";
import { chmod, link, mkdir, open, rename, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { ArtifactManifest } from "@bulkhead/lib/api/artifact-manifest.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { decompressed } from "../snapshot/decompress.ts";
import { createTarReader, type TarEntry, type TarSink } from "../snapshot/tar.ts";
import { type ArtifactTree, type Layout, partsOf } from "./tree.ts";

/** What one artifact may bring at most. */
export type ArtifactLimits = {
  /** Entries of all its tars, whether they are taken or not. */
  files: number;
  /** Bytes, unpacked. */
  bytes: number;
};

/** The disk is never filled further than to this rest: a node under disk pressure evicts pods. */
export const reserveOf = (disk: { blocks: number; bsize: number }): number =>
  Math.min(0.1 * disk.blocks * disk.bsize, 1 << 30);

/** Bytes written between two looks at the disk. */
const lookAtDiskEvery = 64 << 20;

/** Contents of an artifact's files, by number, in one folder that is ours alone. */
export class Contents {
  readonly folder: string;
  readonly #limits: ArtifactLimits;
  #next = 0;
  #entries = 0;
  #bytes = 0;
  #unseen = 0;
  #read = 0;

  constructor(folder: string, limits: ArtifactLimits) {
    this.folder = folder;
    this.#limits = limits;
  }

  path(content: number): string {
    return join(this.folder, String(content));
  }

  count(entries: number, bytes: number): void {
    this.#entries += entries;
    this.#bytes += bytes;
    if (this.#entries > this.#limits.files) throw this.#tooMuch(`${this.#limits.files} entries`);
    if (this.#bytes > this.#limits.bytes) throw this.#tooMuch(`${this.#limits.bytes} bytes`);
  }

  /** Counts what was decompressed: headers, and what stands behind the end of a tar, are bytes too. */
  countRead(bytes: number): void {
    this.#read += bytes;
    if (this.#read > this.#limits.bytes + this.#limits.files * 2048)
      throw this.#tooMuch(`${this.#limits.bytes} bytes`);
  }

  #tooMuch(what: string): RuntimeError {
    return new RuntimeError("resource-exhausted", `Cannot unpack the artifact: it has more than ${what}`);
  }

  /** Takes a file that stands in the same file system. */
  async adopt(path: string, size: number): Promise<number> {
    this.count(1, size);
    const content = this.#next++;
    await rename(path, this.path(content));
    return content;
  }

  create(): { content: number; fd: number } {
    const content = this.#next++;
    return { content, fd: openSync(this.path(content), "wx", 0o600) };
  }

  write(fd: number, chunk: Uint8Array, offset: number): void {
    for (let done = 0; done < chunk.length; )
      done += writeSync(fd, chunk, done, chunk.length - done, offset + done);
    this.#unseen += chunk.length;
    if (this.#unseen < lookAtDiskEvery) return;
    this.#unseen = 0;
    // What waits for the disk is memory of the agent's container meanwhile, which has little.
    fdatasyncSync(fd);
    this.assertRoom(0);
  }

  /** Throws when so many bytes more would leave the disk too full. */
  assertRoom(bytes: number): void {
    const disk = statfsSync(this.folder);
    const left = disk.bavail * disk.bsize - reserveOf(disk);
    if (bytes <= left && left > 0) return;
    throw new RuntimeError(
      "resource-exhausted",
      `no space left on device: the artifact needs ${bytes > 0 ? `${bytes} bytes` : "more"} in "${this.folder}", whose disk can give ${Math.max(0, Math.floor(left))}`,
    );
  }
}

/** Puts the entries of a tar into the tree. `place`: where a name goes; undefined leaves it out. */
const sinkOf = (
  tree: ArtifactTree,
  contents: Contents,
  place: (parts: string[]) => string[] | undefined,
): TarSink & { close(): void } => {
  let file: { fd: number; content: number; parts: string[]; entry: TarEntry; written: number } | undefined;
  const close = (): void => {
    if (file !== undefined) closeSync(file.fd);
    file = undefined;
  };
  return {
    entry(entry) {
      // Of a sparse file all of its size, holes too.
      contents.count(1, entry.type === "file" ? entry.size : 0);
      const named = partsOf(entry.name);
      const parts = place(named.parts);
      const last = parts?.at(-1);
      if (parts === undefined || last === undefined) return;
      const why = named.odd ?? objectionTo(entry);
      if (why !== undefined) tree.refuse(parts, why);
      else if (last === ".wh..wh..opq") tree.opaque(parts.slice(0, -1));
      else if (last.startsWith(".wh.")) {
        if (last.length > 4) tree.whiteout([...parts.slice(0, -1), last.slice(4)]);
      } else if (entry.type === "directory") tree.directory(parts);
      else if (entry.type === "symlink") tree.link(parts, textOf(entry.linkname));
      else if (entry.type === "link") {
        const source = place(partsOf(entry.linkname).parts);
        if (source === undefined) tree.refuse(parts, "is a hard link to what is not taken");
        else tree.hardLink(parts, source);
      } else file = { ...contents.create(), parts, entry, written: 0 };
    },
    data(chunk, offset) {
      if (file === undefined) return;
      contents.write(file.fd, chunk, offset);
      file.written = offset + chunk.length;
    },
    end() {
      if (file === undefined) return;
      const { fd, content, parts, entry, written } = file;
      if (written < entry.size) ftruncateSync(fd, entry.size);
      close();
      tree.file(parts, content, entry.size, (entry.mode & 0o111) !== 0);
    },
    close,
  };
};

const textOf = (bytes: string): string => Buffer.from(bytes, "latin1").toString("utf8");

/** Why an entry may not be in what is taken of an artifact, in words. */
const objectionTo = (entry: TarEntry): string | undefined => {
  switch (entry.type) {
    case "character-device":
    case "block-device":
      return "is a device";
    case "fifo":
      return "is a named pipe";
    case "file":
      if ((entry.mode & 0o6000) !== 0) return `is ${(entry.mode & 0o4000) !== 0 ? "setuid" : "setgid"}`;
      if (entry.xattrs.has("security.capability")) return "has capabilities";
      return undefined;
    case "symlink":
      if (entry.linkname === "" || /[\p{Cc}\\\ufffd]/u.test(textOf(entry.linkname)))
        return "is a symbolic link to what is no plain text";
      return undefined;
    default:
      return undefined;
  }
};

/** Reads a tar, plain or compressed by gzip or zstd. `diffId`: the digest that its content must have. */
export const unpackTar = async (
  path: string,
  into: { tree: ArtifactTree; contents: Contents },
  options: {
    diffId?: string | undefined;
    place?: (parts: string[]) => string[] | undefined;
  },
  signal: AbortSignal,
): Promise<void> => {
  const { tree, contents } = into;
  const { diffId, place = (parts) => parts } = options;
  const sink = sinkOf(tree, contents, place);
  const reader = createTarReader(sink);
  const algorithm = diffId?.slice(0, diffId.indexOf(":"));
  const hash = algorithm === undefined ? undefined : createHash(algorithm);
  try {
    for await (const chunk of decompressed(path, signal)) {
      signal.throwIfAborted();
      contents.countRead(chunk.length);
      hash?.update(chunk);
      reader.push(chunk);
    }
    signal.throwIfAborted();
    reader.finish();
  } finally {
    sink.close();
  }
  const found = hash && `${algorithm}:${hash.digest("hex")}`;
  if (found !== diffId)
    throw new RuntimeError(
      "failed-precondition",
      `the content of a layer has the digest ${found}, the image says ${diffId}`,
    );
};

/** Gives the contents their names below `root`, which is empty, and says what is there now. */
export const layOut = async (
  { files, links }: Layout,
  contents: Contents,
  root: string,
  signal: AbortSignal,
): Promise<ArtifactManifest["files"]> => {
  const listed: ArtifactManifest["files"] = [];
  const placed = new Map<number, { path: string; sha256: string }>();
  await mkdir(root, { mode: 0o755 });
  for (const { path, content, size, mode } of files) {
    signal.throwIfAborted();
    const to = join(root, path);
    await mkdir(dirname(to), { recursive: true, mode: 0o755 });
    const same = placed.get(content);
    if (same === undefined) {
      await rename(contents.path(content), to);
      await chmod(to, mode);
      await synced(to);
      placed.set(content, { path: to, sha256: await sha256Of(to, signal) });
    } else await link(same.path, to);
    listed.push({ kind: "file", path, sha256: placed.get(content)?.sha256 ?? "", size, mode });
  }
  for (const { path, target } of links) {
    await mkdir(dirname(join(root, path)), { recursive: true, mode: 0o755 });
    await symlink(target, join(root, path));
    listed.push({ kind: "link", path, target });
  }
  return listed.toSorted((a, b) => (a.path < b.path ? -1 : 1));
};

const sha256Of = async (path: string, signal: AbortSignal): Promise<string> => {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash, { signal });
  return hash.digest("hex");
};

const synced = async (path: string): Promise<void> => {
  await using file = await open(path, "r");
  await file.sync();
};
