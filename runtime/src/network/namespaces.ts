import { mkdir, readdir, rmdir, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Namespaces } from "../handler/handler.ts";
import type { Linux } from "../linux/linux.ts";
import { MountFlags } from "../linux/linux.ts";

const NSFS_MAGIC = 0x6e736673;

/** True when a namespace is pinned on the file. */
export const isPinned = (path: string, linux: Pick<Linux, "statfs">): boolean => {
  try {
    return linux.statfs(path).type === NSFS_MAGIC;
  } catch {
    return false;
  }
};

/**
 * Pins what is not pinned yet. The mount is the last act of making a namespace, so whatever a killed daemon left
 * behind is either a finished namespace or an empty file.
 */
export const createNamespaces = async (
  dir: string,
  which: ("net" | "ipc" | "uts")[],
  hostname: string,
  linux: Pick<Linux, "statfs" | "pinNamespaces">,
): Promise<Namespaces> => {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const all = Object.fromEntries(which.map((kind) => [kind, join(dir, kind)])) as Namespaces;
  const missing = which.filter((kind) => !isPinned(join(dir, kind), linux));
  for (const kind of missing) await writeFile(join(dir, kind), "", { mode: 0o600 });
  if (missing.length > 0)
    await linux.pinNamespaces(Object.fromEntries(missing.map((kind) => [kind, join(dir, kind)])), hostname);
  return all;
};

/** Unpins everything in `dir` and removes it. */
export const removeNamespaces = async (dir: string, linux: Pick<Linux, "umount">): Promise<void> => {
  for (const name of await readdir(dir).catch(gone([]))) {
    const path = join(dir, name);
    // A mount on top of another (two daemons at once) comes off too: until nothing is mounted.
    for (let pinned = true; pinned; )
      await linux.umount(path, MountFlags.DETACH).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "EINVAL" && error.code !== "ENOENT") throw error;
        pinned = false;
      });
    await unlink(path).catch(gone(undefined));
  }
  await rmdir(dir).catch(gone(undefined));
};

const gone =
  <T>(value: T) =>
  (error: NodeJS.ErrnoException): T => {
    if (error.code !== "ENOENT") throw error;
    return value;
  };
