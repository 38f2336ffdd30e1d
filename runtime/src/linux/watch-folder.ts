import { type FSWatcher, watch as inotify } from "node:fs";

/** After so many looks inotify is tried again. */
const looksBefore = 40;

export type FolderWatchOptions = {
  /** How often to look where the kernel does not tell. */
  lookMs: number;
  /** Told why it does not. */
  failed?: (error: unknown) => void;
  watch?: typeof inotify;
};

/**
 * Calls `changed` with the name of what changed in a directory; without one everything may have. Where the node has no
 * inotify left (fs.inotify.max_user_instances, which others use up), it is looked at now and then: a daemon that could
 * not be started for want of a watch would be worse than a slow one.
 */
export const watchFolder = (
  dir: string,
  changed: (name: string | undefined) => void,
  { lookMs, failed = () => {}, watch = inotify }: FolderWatchOptions,
): Disposable => {
  let watcher: FSWatcher | undefined;
  let timer: NodeJS.Timeout | undefined;
  let ended = false;

  const begin = (): unknown => {
    try {
      const begun = watch(dir, (_, name) => changed(name ?? undefined));
      watcher = begun;
      begun.on("error", (error) => {
        begun.close();
        if (!ended && watcher === begun) look(error);
      });
      return undefined;
    } catch (error) {
      return error;
    }
  };
  const look = (error: unknown): void => {
    failed(error);
    let looks = 0;
    const again = (): void => {
      const found = ++looks % looksBefore === 0 && begin() === undefined;
      // Also with a watch: what happened before it.
      changed(undefined);
      if (!found && !ended) timer = setTimeout(again, lookMs).unref();
    };
    timer = setTimeout(again, lookMs).unref();
  };

  const error = begin();
  if (error !== undefined) look(error);
  return {
    [Symbol.dispose]: () => {
      ended = true;
      clearTimeout(timer);
      watcher?.close();
    },
  };
};
