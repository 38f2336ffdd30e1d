import { createHash } from "node:crypto";
import { closeSync, constants, openSync, writeSync } from "node:fs";
import { type FileHandle, mkdir, open, opendir, readFile, statfs } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { MemoryImage } from "../handler/handler.ts";
import { createTarReader, type TarEntry } from "../snapshot/tar.ts";
import { chunksOf } from "./chunks.ts";
import { layout } from "./layout.ts";
import { type ConfigDump, type PodDump, parseConfigDump, parsePodDump } from "./manifest.ts";

/**
 * A checkpoint is another's word: it comes from a registry or from whoever could write a file. Of it are taken, into
 * an empty directory of ours, regular files of these names and sizes and nothing else; no link is followed, no
 * directory made, no mode, owner or time kept, and what stands in its specification is not even read.
 */
export const bounds = {
  /** config.dump and pod.dump. */
  dump: 1 << 20,
  /** All files of the memory image together, and of the root file system's changes. */
  images: 64 * 2 ** 30,
  entries: 100_000,
  /** What stays free on the disk. */
  free: 512 * 2 ** 20,
} as const;

type Kind = { isPart(name: string): boolean; required: readonly string[]; foreign: string; why: string };

/** The files that are a memory image, by whose it is; by one of its own the other kind is known. */
const kinds: Record<MemoryImage, Kind> = {
  gvisor: {
    // Not gcs_opts.json, which would have runsc fetch the rest from the network.
    isPart: (name) => ["checkpoint.img", "pages_meta.img", "pages.img"].includes(name),
    required: ["checkpoint.img"],
    foreign: "inventory.img",
    why: "it is CRIU's image of Linux processes, and a gVisor handler restores gVisor's alone",
  },
  criu: {
    isPart: (name) => /^[a-z0-9][\w.-]{0,120}\.img$/i.test(name) || name === "descriptors.json",
    required: ["inventory.img", "descriptors.json"],
    foreign: "checkpoint.img",
    why: "it is gVisor's memory image, and handlers of OCI runtimes restore CRIU's alone",
  },
};

export type Taken = {
  config: ConfigDump;
  /** Directory with the memory image. */
  images: string;
  /** What the container had changed in its root file system, where CRIU's processes need that: a layer tar. */
  changes?: string;
};

const refuse = (why: string): never => {
  throw new RuntimeError("invalid-argument", why);
};

const refuseForeign = (kind: Kind): never => {
  throw new RuntimeError("unimplemented", kind.why);
};

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_DIRECTORY } = constants;

/** Keeps the sum of what is written within the bounds and the disk. */
const openBudget = async (directory: string): Promise<{ take(bytes: number): void }> => {
  const { bavail, bsize } = await statfs(directory);
  let left = bavail * bsize - bounds.free;
  let images = bounds.images as number;
  return {
    take(bytes) {
      images -= bytes;
      left -= bytes;
      if (images < 0) refuse(`its memory image is larger than ${bounds.images} bytes`);
      if (left < 0) throw new RuntimeError("resource-exhausted", `the disk has no room for its memory image`);
    },
  };
};

/** Takes a checkpoint out of a tar archive: kubelet's, CRI-O's or containerd's file. */
export const takeArchive = async (
  path: string,
  into: string,
  of: MemoryImage,
  signal: AbortSignal,
): Promise<Taken> => {
  const kind = kinds[of];
  // Not blocking: a FIFO would wait for its writer.
  await using file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((error) => {
    throw new RuntimeError("not-found", messageOf(error), { cause: error });
  });
  const stats = await file.stat();
  if (!stats.isFile()) refuse("it is not a regular file");
  const { size } = stats;
  const images = join(into, "image");
  await mkdir(images, { mode: 0o700 });
  const changes = join(into, layout.rootfsDiff);
  const budget = await openBudget(into);
  const parts: Buffer[] = [];
  const seen = new Set<string>();
  let entries = 0;
  let target: number | "config" | undefined;
  const close = (): void => {
    if (typeof target === "number") closeSync(target);
    target = undefined;
  };
  const begin = (entry: TarEntry): void => {
    if (++entries > bounds.entries) refuse(`it has more than ${bounds.entries} entries`);
    const name = entry.name.replace(/^(\.?\/)+/, "");
    const below = name.startsWith(`${layout.images}/`) ? name.slice(layout.images.length + 1) : "";
    if (below === kind.foreign) refuseForeign(kind);
    const to = kind.isPart(below)
      ? join(images, below)
      : name === layout.rootfsDiff && of === "criu"
        ? changes
        : undefined;
    if (to === undefined && name !== layout.config) return;
    if (entry.type !== "file" || entry.isSparse) refuse(`its ${name} is not a plain file`);
    if (seen.has(name)) refuse(`it has ${name} twice`);
    seen.add(name);
    if (to === undefined) {
      if (entry.size > bounds.dump) refuse(`its ${name} is larger than ${bounds.dump} bytes`);
      target = "config";
    } else {
      budget.take(entry.size);
      target = openSync(to, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    }
  };
  const reader = createTarReader({
    entry: begin,
    data: (chunk, offset) => {
      if (target === "config") parts.push(Buffer.from(chunk));
      else if (target !== undefined) writeAll(target, chunk, offset);
    },
    end: close,
  });
  try {
    for await (const chunk of chunksOf(file, size, signal)) reader.push(chunk);
    reader.finish();
  } catch (error) {
    if (error instanceof RuntimeError || signal.aborted) throw error;
    refuse(`it cannot be read: ${messageOf(error)}`);
  } finally {
    close();
  }
  if (!seen.has(layout.config)) refuse(`it has no ${layout.config}`);
  for (const each of kind.required)
    if (!seen.has(`${layout.images}/${each}`)) refuse(`it has no ${layout.images}/${each}`);
  return {
    config: parseConfigDump(Buffer.concat(parts).toString()),
    images,
    ...(seen.has(layout.rootfsDiff) && { changes }),
  };
};

const writeAll = (fd: number, chunk: Uint8Array, offset: number): void => {
  for (let done = 0; done < chunk.length; )
    done += writeSync(fd, chunk, done, chunk.length - done, offset + done);
};

/** Takes a checkpoint out of the files of a mounted image. */
export const takeDirectory = async (
  root: string,
  into: string,
  of: MemoryImage,
  signal: AbortSignal,
): Promise<Taken> => {
  const kind = kinds[of];
  await using top = await open(root, O_RDONLY | O_DIRECTORY);
  const images = join(into, "image");
  await mkdir(images, { mode: 0o700 });
  const config = parseConfigDump(await readDump(top, layout.config));
  const budget = await openBudget(into);
  await using below = await openBelow(top, layout.images, O_DIRECTORY);
  if (below === undefined) return refuse(`it has no ${layout.images}`);
  for (const name of await partsIn(below, kind)) {
    await using source = await openBelow(below, name);
    if (source === undefined) continue;
    budget.take((await source.stat()).size);
    await copy(source, join(images, name), signal);
  }
  await requireImage(images, below, kind);
  if (of !== "criu") return { config, images };
  await using diff = await openBelow(top, layout.rootfsDiff);
  if (diff === undefined) return { config, images };
  const changes = join(into, layout.rootfsDiff);
  budget.take((await diff.stat()).size);
  await copy(diff, changes, signal);
  return { config, images, changes };
};

/** Names of a memory image's files in an open directory. */
const partsIn = async (directory: FileHandle, kind: Kind): Promise<string[]> => {
  const names: string[] = [];
  let entries = 0;
  for await (const { name } of await opendir(`/proc/self/fd/${directory.fd}`)) {
    if (++entries > bounds.entries) refuse(`its ${layout.images} has more than ${bounds.entries} entries`);
    if (kind.isPart(name)) names.push(name);
  }
  return names;
};

const requireImage = async (images: string, below: FileHandle, kind: Kind): Promise<void> => {
  for (const name of kind.required) {
    await using image = await open(join(images, name)).catch(() => undefined);
    if (image !== undefined) continue;
    await using foreign = await openBelow(below, kind.foreign);
    if (foreign !== undefined) refuseForeign(kind);
    refuse(`it has no ${layout.images}/${name}`);
  }
};

/** Takes a pod's checkpoint out of the directory that CheckpointPod wrote; every file must be what pod.dump says. */
export const takePod = async (
  path: string,
  into: string,
  signal: AbortSignal,
): Promise<{ dump: PodDump; images: string }> => {
  await using top = await open(path, O_RDONLY | O_DIRECTORY).catch((error) => {
    throw new RuntimeError("not-found", messageOf(error), { cause: error });
  });
  const dump = parsePodDump(await readDump(top, layout.pod));
  const images = join(into, "image");
  await mkdir(images, { mode: 0o700 });
  const budget = await openBudget(into);
  await using below = await openBelow(top, layout.images, O_DIRECTORY);
  if (below === undefined) return refuse(`it has no ${layout.images}`);
  for (const name of await partsIn(below, kinds.gvisor)) {
    const said = dump.files[`${layout.images}/${name}`];
    if (said === undefined) continue;
    await using source = await openBelow(below, name);
    if (source === undefined) return refuse(`it has no ${layout.images}/${name}`);
    budget.take((await source.stat()).size);
    const found = await copy(source, join(images, name), signal);
    if (found.size !== said.size || found.sha256 !== said.sha256)
      refuse(
        `its ${layout.images}/${name} is not what ${layout.pod} says: its digest is sha256:${found.sha256}`,
      );
  }
  await requireImage(images, below, kinds.gvisor);
  return { dump, images };
};

/** A name in an open directory; undefined where nothing is. No link is followed, and nothing but a file or directory opened. */
const openBelow = async (
  directory: FileHandle,
  name: string,
  flags = 0,
): Promise<(FileHandle & AsyncDisposable) | undefined> => {
  const handle = await open(
    `/proc/self/fd/${directory.fd}/${name}`,
    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | flags,
  ).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    return refuse(
      `its ${name} is not a plain ${flags === O_DIRECTORY ? "directory" : "file"}: ${error.code}`,
    );
  });
  if (handle === undefined || flags === O_DIRECTORY || (await handle.stat()).isFile()) return handle;
  await handle.close();
  return refuse(`its ${name} is not a plain file`);
};

const readDump = async (directory: FileHandle, name: string): Promise<string> => {
  await using file = await openBelow(directory, name);
  if (file === undefined) return refuse(`it has no ${name}`);
  if ((await file.stat()).size > bounds.dump) refuse(`its ${name} is larger than ${bounds.dump} bytes`);
  return await readFile(file, "utf8");
};

/** No more than the size that was there when it began. */
const copy = async (
  source: FileHandle,
  to: string,
  signal: AbortSignal,
): Promise<{ size: number; sha256: string }> => {
  const { size } = await source.stat();
  await using target = await open(to, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  const hash = createHash("sha256");
  let done = 0;
  for await (const chunk of chunksOf(source, size, signal)) {
    hash.update(chunk);
    await target.writeFile(chunk);
    done += chunk.length;
  }
  return { size: done, sha256: hash.digest("hex") };
};
