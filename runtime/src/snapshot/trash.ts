import { mkdir, readdir, rename } from "node:fs/promises";
import { join } from "node:path";

/** Until what could not be hidden or removed is tried again: doubling, up to the last. */
const againMs = [10_000, 600_000] as const;

/**
 * A directory where trees go out of sight at once and are removed behind. What cannot be, as on a disk that is read-only
 * for a while or without file descriptors, is tried again; what a stop leaves is removed at the next start.
 */
export type Trash = Disposable & {
  /** Throws what keeps it in sight. One that is not there is fine. */
  hide(path: string): Promise<void>;
  /** The same, and waits for the removal, whatever comes of it. */
  discard(path: string): Promise<void>;
  /** Hides it some time, for a path that nobody uses again. */
  discardLater(path: string): void;
  /** Removes what is there. */
  empty(): Promise<void>;
};

/** `remove` removes a tree of the directory, and may move parts of PATH to PATH.N meanwhile. */
export const createTrash = async (dir: string, remove: (path: string) => Promise<void>): Promise<Trash> => {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const [first, longest] = againMs;
  const inSight = new Set<string>();
  const removing = new Set<string>();
  let serial = 0;
  let pause: number = first;
  let timer: NodeJS.Timeout | undefined;
  let isClosed = false;

  const again = (): void => {
    if (isClosed) return;
    timer ??= setTimeout(() => {
      timer = undefined;
      void empty();
    }, pause).unref();
  };
  /** Its name in the directory; undefined when nothing is there. */
  const hide = async (path: string): Promise<string | undefined> => {
    const name = `${process.pid}-${Date.now()}-${serial++}`;
    try {
      await rename(path, join(dir, name));
      return name;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  };
  const removeNamed = async (name: string | undefined): Promise<void> => {
    if (name === undefined) return;
    removing.add(name);
    try {
      await remove(join(dir, name));
    } catch {
      again();
    } finally {
      removing.delete(name);
    }
  };
  const empty = async (): Promise<void> => {
    pause = Math.min(2 * pause, longest);
    try {
      for (const path of inSight) {
        await hide(path);
        inSight.delete(path);
      }
      // PATH.N comes before PATH, whose removal may want that name.
      for (const name of (await readdir(dir)).toSorted().toReversed())
        if (!removing.has(name.split(".")[0] ?? "")) await removeNamed(name);
    } catch {
      again();
    }
    if (timer === undefined) pause = first;
  };

  return {
    async hide(path) {
      void removeNamed(await hide(path));
    },
    async discard(path) {
      await removeNamed(await hide(path));
    },
    discardLater(path) {
      hide(path).then(removeNamed, () => {
        inSight.add(path);
        again();
      });
    },
    empty,
    [Symbol.dispose]() {
      isClosed = true;
      clearTimeout(timer);
    },
  };
};
