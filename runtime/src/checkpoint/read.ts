import { createHash } from "node:crypto";
import { closeSync, constants, openSync, writeSync } from "node:fs";
import { type FileHandle, mkdir, open, readFile, statfs } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
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
  /** All files of the memory image together. */
  images: 64 * 2 ** 30,
  entries: 100_000,
  /** What stays free on the disk. */
  free: 512 * 2 ** 20,
} as const;

/** Files of gVisor's image. Not gcs_opts.json, which would have runsc fetch the rest from the network. */
const imageFiles = ["checkpoint.img", "pages_meta.img", "pages.img"];
const criuFile = "inventory.img";

export type Taken = {
  config: ConfigDump;
  /** Directory with the memory image. */
  images: string;
};

const refuse = (why: string): never => {
  throw new RuntimeError("invalid-argument", why);
};

const notGvisor = (): never => {
  throw new RuntimeError(
    "unimplemented",
    "it is CRIU's image of Linux processes, and only gVisor's can be restored",
  );
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
export const takeArchive = async (path: string, into: string, signal: AbortSignal): Promise<Taken> => {
  // Not blocking: a FIFO would wait for its writer.
  await using file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((error) => {
    throw new RuntimeError("not-found", messageOf(error), { cause: error });
  });
  const stats = await file.stat();
  if (!stats.isFile()) refuse("it is not a regular file");
  const { size } = stats;
  const images = join(into, "image");
  await mkdir(images, { mode: 0o700 });
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
    const image = imageFiles.find((each) => name === `${layout.images}/${each}`);
    if (name === `${layout.images}/${criuFile}`) notGvisor();
    if (image === undefined && name !== layout.config) return;
    if (entry.type !== "file" || entry.isSparse) refuse(`its ${name} is not a plain file`);
    if (seen.has(name)) refuse(`it has ${name} twice`);
    seen.add(name);
    if (image === undefined) {
      if (entry.size > bounds.dump) refuse(`its ${name} is larger than ${bounds.dump} bytes`);
      target = "config";
    } else {
      budget.take(entry.size);
      target = openSync(join(images, image), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
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
  if (!seen.has(`${layout.images}/${imageFiles[0]}`)) refuse(`it has no ${layout.images}/${imageFiles[0]}`);
  return { config: parseConfigDump(Buffer.concat(parts).toString()), images };
};

const writeAll = (fd: number, chunk: Uint8Array, offset: number): void => {
  for (let done = 0; done < chunk.length; )
    done += writeSync(fd, chunk, done, chunk.length - done, offset + done);
};

/** Takes a checkpoint out of the files of a mounted image. */
export const takeDirectory = async (root: string, into: string, signal: AbortSignal): Promise<Taken> => {
  await using top = await open(root, O_RDONLY | O_DIRECTORY);
  const images = join(into, "image");
  await mkdir(images, { mode: 0o700 });
  const config = parseConfigDump(await readDump(top, layout.config));
  const budget = await openBudget(into);
  await using below = await openBelow(top, layout.images, O_DIRECTORY);
  if (below === undefined) return refuse(`it has no ${layout.images}`);
  for (const name of imageFiles) {
    await using source = await openBelow(below, name);
    if (source === undefined) continue;
    budget.take((await source.stat()).size);
    await copy(source, join(images, name), signal);
  }
  await requireImage(images, below);
  return { config, images };
};

const requireImage = async (images: string, below: FileHandle): Promise<void> => {
  await using image = await open(join(images, imageFiles[0]!)).catch(() => undefined);
  if (image !== undefined) return;
  await using criu = await openBelow(below, criuFile);
  if (criu !== undefined) notGvisor();
  refuse(`it has no ${layout.images}/${imageFiles[0]}`);
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
  for (const name of imageFiles) {
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
  await requireImage(images, below);
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
