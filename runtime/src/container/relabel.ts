import { constants } from "node:fs";
import { type FileHandle, lstat, open, opendir, realpath } from "node:fs/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Linux } from "../linux/linux.ts";
import { requireRelabelable } from "../spec/selinux.ts";

/** Directories below one another that are open at a time. */
const maxDepth = 1024;
const gone = ["ENOENT", "ENOTDIR", "ELOOP"];
const unsupported = ["EOPNOTSUPP", "ENOTSUP"];

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? "";

/**
 * Gives a file, or a directory and all below it, an SELinux label: the directory itself last. A pod that runs may change
 * the tree meanwhile: each directory is opened below its parent's descriptor without following a link, so that the walk
 * cannot be led out, and nothing on another file system is touched. Where a file system keeps no labels nothing is done.
 */
export const relabel = async (
  path: string,
  label: string,
  linux: Pick<Linux, "changeXattr">,
  signal: AbortSignal,
  attribute = "security.selinux",
): Promise<void> => {
  const value = Buffer.from(label);
  const set = async (at: string | Buffer): Promise<void> => {
    try {
      await linux.changeXattr(at, attribute, value);
    } catch (error) {
      if (![...gone, ...unsupported].includes(codeOf(error))) throw error;
    }
  };

  const walk = async (directory: FileHandle, device: bigint, depth: number): Promise<void> => {
    if (depth > maxDepth) throw new Error(`more than ${maxDepth} directories below one another`);
    const at = `/proc/self/fd/${directory.fd}`;
    // Latin-1: a name need not be UTF-8.
    for await (const { name } of await opendir(at, { encoding: "latin1", bufferSize: 256 })) {
      signal.throwIfAborted();
      const entry = Buffer.from(`${at}/${name}`, "latin1");
      const stats = await lstat(entry, { bigint: true }).catch(unlessGone);
      if (stats === undefined || stats.dev !== device) continue;
      if (stats.isDirectory()) await walkInto(entry, device, depth + 1);
      else await set(entry);
    }
    await set(`${at}/.`);
  };

  const walkInto = async (
    entry: string | Buffer,
    device: bigint | undefined,
    depth: number,
  ): Promise<void> => {
    const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
    const directory = await open(entry, flags).catch(unlessGone);
    if (directory === undefined) return;
    try {
      // Another one may stand there by now.
      const { dev } = await directory.stat({ bigint: true });
      if (device === undefined || dev === device) await walk(directory, dev, depth);
    } finally {
      await directory.close();
    }
  };

  try {
    const real = await realpath(path);
    requireRelabelable(real);
    if ((await lstat(real)).isDirectory()) await walkInto(real, undefined, 0);
    else await set(real);
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof RuntimeError) throw error;
    throw new RuntimeError("unknown", `Cannot relabel "${path}": ${messageOf(error)}`, { cause: error });
  }
};

const unlessGone = (error: unknown): undefined => {
  if (!gone.includes(codeOf(error))) throw error;
};
