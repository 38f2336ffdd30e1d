import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { relabel } from "../container/relabel.ts";
import type { Linux } from "../linux/linux.ts";
import { typeOf } from "../spec/selinux.ts";

export type LabelLinux = Pick<Linux, "lsetxattr" | "lgetxattr" | "changeXattr">;

const ATTRIBUTE = "security.selinux";
const RELABEL_MS = 600_000;

/** Whether a file has the type of `label`. User and level are those of whoever made it, and no policy asks for them here. */
export const isLabelled = (path: string, label: string, linux: Pick<Linux, "lgetxattr">): boolean => {
  try {
    const found = linux.lgetxattr(path, ATTRIBUTE);
    return found !== undefined && typeOf(Buffer.from(found).toString()) === typeOf(label);
  } catch {
    // Gone, or on a file system without labels: who uses it is told.
    return false;
  }
};

/**
 * The SELinux label of layers' own files. Containers see another one, of the overlay; but for programs in memory the kernel
 * asks the files below it too. What is made in a directory has its type, so `dirs` get the label; a layer that has
 * another (of an earlier version, of a time without SELinux, or after a restorecon) is walked through before its next
 * use. The walk labels a layer's root last: one that was cut off begins again. Without a label nothing is done.
 */
export const createLayerLabels = (
  label: string | undefined,
  dirs: readonly string[],
  linux: LabelLinux,
  onFailure: (reason: string) => void = () => {},
) => {
  const closing = new AbortController();
  const walks = new Map<string, Promise<void>>();
  let all: Promise<void> | undefined;

  const begin = (): string | undefined => {
    if (label === undefined) return undefined;
    try {
      for (const dir of dirs)
        if (!isLabelled(dir, label, linux)) linux.lsetxattr(dir, ATTRIBUTE, Buffer.from(label));
      return label;
    } catch (error) {
      // A file system without labels, or a policy that does not know this one, or does not let us.
      onFailure(messageOf(error));
      return undefined;
    }
  };
  const own = begin();

  /** Labels a layer that is not. A failure is told and no more: whether its files can be used is the kernel's to say. */
  const ensure = async (path: string): Promise<void> => {
    if (own === undefined || closing.signal.aborted) return;
    let walk = walks.get(path);
    if (walk === undefined) {
      if (isLabelled(path, own, linux)) return;
      const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(RELABEL_MS)]);
      walk = relabel(path, own, linux, signal)
        .catch((error) => {
          if (!closing.signal.aborted) onFailure(messageOf(error));
        })
        .finally(() => walks.delete(path));
      walks.set(path, walk);
    }
    await walk;
  };

  return {
    /** What layers are labelled with; undefined: nothing. */
    label: own,
    ensure,
    /** Labels what is not, one after the other, behind everything else. `paths` is asked as this goes on. */
    ensureAll(paths: Iterable<string>): void {
      if (own === undefined) return;
      all = (async () => {
        for (const path of paths) await ensure(path);
      })();
    },
    async close(): Promise<void> {
      closing.abort();
      await Promise.all([all, ...walks.values()]);
    },
  };
};
