import { constants } from "node:fs";
import { lstat, mkdir, open, readlink } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** As many symbolic links as the kernel follows (path_resolution(7)). */
const maxLinks = 40;

const isAbsent = (error: unknown): boolean =>
  ["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "");

/**
 * The path on the node of a path inside a root file system: every symbolic link is followed as if the root were
 * "/", so that nothing the image holds leads out of it. Parts that are not there stay as they are. Only for
 * roots in which nothing runs yet.
 */
export const resolveInRoot = async (root: string, path: string): Promise<string> => {
  const pending = path.split("/").reverse();
  const done: string[] = [];
  let links = 0;
  while (pending.length > 0) {
    const part = pending.pop();
    if (part === undefined || part === "" || part === ".") continue;
    if (part === "..") {
      done.pop();
      continue;
    }
    const here = join(root, ...done, part);
    const target = await readlink(here).catch((error: NodeJS.ErrnoException) => {
      // EINVAL: not a link.
      if (error.code === "EINVAL" || isAbsent(error)) return undefined;
      throw error;
    });
    if (target === undefined) {
      done.push(part);
      continue;
    }
    if (++links > maxLinks)
      throw new RuntimeError("invalid-argument", `Cannot resolve "${path}": too many symbolic links`);
    if (target.startsWith("/")) done.length = 0;
    pending.push(...target.split("/").reverse());
  }
  return join(root, ...done);
};

/** Text of a regular file inside a root, "" when there is none. Refuses more than `limit` bytes. */
export const readInRoot = async (root: string, path: string, limit: number): Promise<string> => {
  const found = await resolveInRoot(root, path);
  // O_NONBLOCK: a FIFO of that name must not hold us up.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(found, flags).catch((error: unknown) => {
    if (isAbsent(error)) return undefined;
    throw error;
  });
  if (file === undefined) return "";
  try {
    const { size } = await file.stat().then((stats) => (stats.isFile() ? stats : { size: 0 }));
    if (size > limit)
      throw new RuntimeError(
        "invalid-argument",
        `Cannot read ${path} of the image: larger than ${limit} bytes`,
      );
    const buffer = Buffer.alloc(size);
    let filled = 0;
    while (filled < size) {
      const { bytesRead } = await file.read(buffer, filled, size - filled, filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return buffer.toString("utf8", 0, filled);
  } finally {
    await file.close();
  }
};

/** Makes a directory inside a root where nothing is yet. */
export const makeInRoot = async (root: string, path: string): Promise<void> => {
  const found = await resolveInRoot(root, path);
  const there = await lstat(found).catch(() => undefined);
  if (there === undefined) await mkdir(found, { recursive: true, mode: 0o755 });
};
