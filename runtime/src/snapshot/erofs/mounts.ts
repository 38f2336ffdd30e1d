import { statSync } from "node:fs";
import { mkdir, readdir, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { type Linux, MountFlags } from "../../linux/linux.ts";
import { Locks } from "../../record/lock.ts";
import { isLabelled } from "../labels.ts";
import { contextOf, joinOptions } from "../mount-options.ts";
import { MAGIC } from "./format.ts";
import { createErofsTree } from "./tree.ts";

type MountLinux = Pick<Linux, "mount" | "umount" | "statfs" | "lgetxattr">;

/** Images stay mounted for so long after the last use: pods of one image come and go. */
const IDLE_MS = 30_000;
const never = new AbortController().signal;

/**
 * Where layers that are images are mounted: `dir`/N, once for all containers, so that they share the page cache. A
 * container's overlay keeps its layers alive by itself; these mounts only say that there is one to share. An image has no
 * labels in it: with `label` all its files are shown under this one.
 */
export const createImageMounts = (dir: string, linux: MountLinux, label: string | undefined) => {
  const idle = new Map<string, NodeJS.Timeout>();
  /** A mount is made once, and not found by one while another takes it down. */
  const turns = new Locks();
  const at = (name: string) => join(dir, name);

  const isMounted = (name: string): boolean => {
    const stat = statSync(at(name), { throwIfNoEntry: false });
    return (
      stat !== undefined &&
      stat.dev !== statSync(dirname(at(name))).dev &&
      linux.statfs(at(name)).type === MAGIC
    );
  };

  const mount = async (name: string, file: string): Promise<void> => {
    if (isMounted(name)) return;
    await mkdir(at(name), { recursive: true, mode: 0o700 });
    await mountImage(file, at(name), linux, label);
  };

  const unmount = async (name: string): Promise<void> => {
    await linux
      .umount(at(name), MountFlags.DETACH | MountFlags.NOFOLLOW)
      .catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "EINVAL" && error.code !== "ENOENT") throw error;
      });
    await rmdir(at(name)).catch(() => {});
  };

  const stay = (name: string): void => {
    clearTimeout(idle.get(name));
    idle.delete(name);
  };

  /** Takes it down, unless it has come to be used. */
  const takeDown = (name: string, isUsed: () => boolean): Promise<void> =>
    turns.run(name, never, async () => {
      if (!isUsed()) await unmount(name);
    });

  return {
    /** The directory that shows the image `file`. Whoever asks is among those who use it already. */
    async mount(name: string, file: string): Promise<string> {
      stay(name);
      await turns.run(name, never, () => mount(name, file));
      return at(name);
    },
    /** Nothing uses it now; `isUsed` is asked once more when the time has come. */
    release(name: string, isUsed: () => boolean): void {
      if (idle.has(name)) return;
      const timer = setTimeout(() => {
        idle.delete(name);
        void takeDown(name, isUsed).catch(() => {});
      }, IDLE_MS);
      idle.set(name, timer.unref());
    },
    /** Takes one down whose layer goes. */
    async unmount(name: string): Promise<void> {
      stay(name);
      await takeDown(name, () => false);
    },
    /** Takes down what waits to be, at once; what is used stays. */
    async close(isUsed: (name: string) => boolean): Promise<void> {
      for (const name of idle.keys()) {
        clearTimeout(idle.get(name));
        await takeDown(name, () => isUsed(name));
      }
      idle.clear();
    },
    /** Takes down what is not among `used`, and what has another label, which the next use mounts again. */
    async sweep(used: ReadonlySet<string>): Promise<void> {
      for (const name of await readdir(dir))
        if (!used.has(name) || (label !== undefined && !isLabelled(at(name), label, linux)))
          await unmount(name);
    },
  };
};

const mountImage = (file: string, target: string, linux: MountLinux, label: string | undefined) =>
  linux.mount(file, target, "erofs", MountFlags.RDONLY, joinOptions(contextOf(label)));

/**
 * Why layers cannot be EROFS images below `root` on this machine, found out by making, mounting and stacking one;
 * undefined when they can. Images are mounted as files: Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE.
 */
export const whyNoErofs = async (
  root: string,
  linux: MountLinux,
  label: string | undefined,
): Promise<string | undefined> => {
  const dir = join(root, "staging", "probe");
  await rm(dir, { recursive: true, force: true });
  for (const name of ["image", "upper", "work", "merged"]) await mkdir(join(dir, name), { recursive: true });
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  try {
    const file = join(dir, "file");
    const tree = createErofsTree(file);
    tree.mkdir("seen");
    tree.seal();
    await mountImage(file, join(dir, "image"), linux, label);
    undo.defer(() => linux.umount(join(dir, "image"), MountFlags.DETACH));
    const data = `lowerdir=${dir}/image,upperdir=${dir}/upper,workdir=${dir}/work`;
    await linux.mount("overlay", join(dir, "merged"), "overlay", 0, data);
    undo.defer(() => linux.umount(join(dir, "merged"), MountFlags.DETACH));
    return statSync(join(dir, "merged", "seen")).isDirectory() ? undefined : "an image shows something else";
  } catch (error) {
    // ENOTBLK, which Node has no name for: an older kernel, or a file system such as tmpfs whose files it does not take.
    const isNoBlock = (error as NodeJS.ErrnoException).errno === -15;
    return isNoBlock ? "the kernel mounts no image that is a file there" : messageOf(error);
  }
};
