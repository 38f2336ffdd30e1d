import { mkdir, open, readdir, rename, rm, stat, statfs, truncate } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { runHostProgram } from "../linux/host-program.ts";

/**
 * Root file systems as disks, for walls that share no directory with the node (Firecracker) or shall not: one file
 * with an ext4 file system each, of a container's own and writable. Its size is a bound that the guest meets as ENOSPC.
 * Never one file for two containers: a hypervisor may open it for writing whatever is asked of it (Kata does so with
 * every drive of Firecracker's), and what a guest writes into it would be in the other's root.
 *
 *     KEY.ext4       a disk; it is there when it is whole
 *     KEY.ext4.new   half made; emptied at start
 */
export interface Disks {
  /**
   * Makes the disk of `key` from the files below `directory` and resolves with its path. Idempotent by key: a second
   * call finds the first one's. "resource-exhausted" when the files do not fit into `sizeMiB`, or the node's disk is full.
   */
  make(key: string, directory: string, sizeMiB: number, signal: AbortSignal): Promise<string>;
  /** The same disk as a block device of the node, for a shim that takes no files; given back with the disk. */
  attach(key: string, signal: AbortSignal): Promise<string>;
  /** Gives back the disk and its device. Succeeds when there is none. */
  remove(key: string): Promise<void>;
  /** Removes all but the disks of these keys: what a daemon left that ended half-way. */
  sweep(keys: ReadonlySet<string>): Promise<void>;
  /** What the disk takes of the node's, now. 0 without one. */
  usage(key: string): Promise<bigint>;
}

/** For what must be undone even when the caller has gone. */
const undoMs = 30_000;

/** mke2fs and losetup are on every node: the kubelet formats volumes with the one and attaches them with the other. */
export const createDisks = async (root: string): Promise<Disks> => {
  await mkdir(root, { recursive: true, mode: 0o700 });
  const at = (key: string): string => {
    if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/.test(key))
      throw new RuntimeError("invalid-argument", `Cannot use "${key}" as the key of a disk`);
    return join(root, `${key}.ext4`);
  };

  const devicesOf = async (file: string, signal: AbortSignal): Promise<string[]> => {
    const { stdout } = await runHostProgram(
      "losetup",
      ["--associated", file, "--noheadings", "--output", "NAME"],
      signal,
    );
    return stdout
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line !== "");
  };

  const discard = async (file: string): Promise<void> => {
    if (!(await exists(file))) return;
    const signal = AbortSignal.timeout(undoMs);
    // One that a guest still holds goes when the guest does: the kernel detaches it with the last user.
    for (const device of await devicesOf(file, signal))
      await runHostProgram("losetup", ["--detach", device], signal);
    // A hypervisor may hold on to it until the drive has another: what it took of the node's disk is free at once.
    await truncate(file);
    await rm(file);
  };

  return {
    async make(key, directory, sizeMiB, signal) {
      const file = at(key);
      if (await exists(file)) return file;
      const half = `${file}.new`;
      await using undo = new AsyncDisposableStack();
      undo.defer(() => rm(half, { force: true }));
      await (await open(half, "w", 0o600)).close();
      try {
        // No journal: what it saves after a power cut is a container that is gone by then. No blocks kept for root.
        const options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"];
        await runHostProgram("mke2fs", [...options, "-d", directory, half, `${sizeMiB}M`], signal);
      } catch (error) {
        signal.throwIfAborted();
        throw await notMade(error, root, sizeMiB);
      }
      await rename(half, file);
      return file;
    },

    async attach(key, signal) {
      const file = at(key);
      const [known] = await devicesOf(file, signal);
      if (known !== undefined) return known;
      const { stdout } = await runHostProgram("losetup", ["--find", "--show", file], signal);
      return stdout.trim();
    },

    remove: (key) => discard(at(key)),

    async sweep(keys) {
      const kept = new Set([...keys].map((key) => `${key}.ext4`));
      for (const name of await readdir(root)) if (!kept.has(name)) await discard(join(root, name));
    },

    async usage(key) {
      const found = await stat(at(key), { bigint: true }).catch(() => undefined);
      return found === undefined ? 0n : found.blocks * 512n;
    },
  };
};

const exists = async (file: string): Promise<boolean> =>
  (await stat(file).catch(() => undefined)) !== undefined;

/** mke2fs says "Could not allocate block" for either of two that are full. */
const notMade = async (error: unknown, root: string, sizeMiB: number): Promise<RuntimeError> => {
  const said = ((error as { stderr?: string }).stderr ?? "").trim() || messageOf(error);
  if (!/allocate|No space left/i.test(said))
    return new RuntimeError("internal", `Cannot make a disk of the root file system: ${said}`, {
      cause: error,
    });
  const { bavail } = await statfs(root).catch(() => ({ bavail: 1 }));
  return new RuntimeError(
    "resource-exhausted",
    bavail === 0
      ? `Cannot make a disk of the root file system: the disk that holds ${root} is full`
      : `Cannot put the root file system on a disk of ${sizeMiB} MiB: its files need more; set a larger diskSize in the profile`,
    { cause: error },
  );
};
