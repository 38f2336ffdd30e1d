import { type KubeObject, keyOf } from "@bulkhead/lib/kube/object.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import type { Clock } from "@bulkhead/lib/std/clock.ts";

/** Objects as the watch or our own last write has them, whichever is newer: planning must not see its own past. */
export type Latest<T extends KubeObject> = {
  get(key: string): T | undefined;
  /** What the API server answered to a write of ours. */
  wrote(object: T): void;
  /** The watch brought this; true when it is what we wrote last. */
  seen(object: T): boolean;
  /** The object is gone, and so is what we wrote of it. */
  forget(key: string): void;
  clear(): void;
};

/** A watch that has not brought a write by then may never: what the store has is believed again. */
const believedMs = 30_000;

/** Versions of objects are numbers (KEP-5504). */
const version = ({ metadata }: KubeObject): number => Number(metadata.resourceVersion ?? 0);

export const createLatest = <T extends KubeObject>(
  store: Pick<Store<T>, "get">,
  clock: Pick<Clock, "now">,
): Latest<T> => {
  const written = new Map<string, { object: T; at: number }>();
  const isNewer = (object: T): boolean => {
    const cached = store.get(keyOf(object));
    return (
      cached === undefined ||
      (cached.metadata.uid === object.metadata.uid && version(object) > version(cached))
    );
  };
  return {
    get: (key) => {
      const own = written.get(key);
      if (own && isNewer(own.object) && clock.now() - own.at < believedMs) return own.object;
      return store.get(key);
    },
    wrote: (object) => {
      if (isNewer(object)) written.set(keyOf(object), { object, at: clock.now() });
    },
    seen: (object) => {
      const own = written.get(keyOf(object))?.object;
      if (!own || version(object) < version(own)) return false;
      written.delete(keyOf(object));
      return version(object) === version(own);
    },
    forget: (key) => void written.delete(key),
    clear: () => written.clear(),
  };
};
