import { type KubeObject, keyOf } from "./object.ts";

/** The objects of one resource as last seen, by key, with indexes. */
export type Store<T extends KubeObject> = {
  get(key: string): T | undefined;
  list(): Iterable<T>;
  readonly size: number;
  /** The objects that index `name` files under `value`. */
  indexed(name: string, value: string): Iterable<T>;
};

export type Change<T> =
  | { type: "added"; object: T }
  | { type: "updated"; object: T; old: T }
  | { type: "deleted"; object: T };

export type WritableStore<T extends KubeObject> = Store<T> & {
  /** Returns what changed; nothing when this version is already here. */
  set(object: T): Change<T> | undefined;
  delete(key: string): Change<T> | undefined;
  /** Makes the store hold exactly `objects`: a list taken anew may reveal deletions that no watch told of. */
  replace(objects: T[]): Change<T>[];
};

export type Indexes<T> = Record<string, (object: T) => string | undefined>;

export const createStore = <T extends KubeObject>(indexes: Indexes<T> = {}): WritableStore<T> => {
  const objects = new Map<string, T>();
  const tables = new Map(Object.keys(indexes).map((name) => [name, new Map<string, Set<T>>()]));

  const file = (object: T, into: boolean) => {
    for (const [name, of] of Object.entries(indexes)) {
      const value = of(object);
      if (value === undefined) continue;
      const table = tables.get(name)!;
      const set = table.get(value) ?? new Set<T>();
      if (into) table.set(value, set.add(object));
      else if (set.delete(object) && set.size === 0) table.delete(value);
    }
  };

  const set = (object: T): Change<T> | undefined => {
    const key = keyOf(object);
    const old = objects.get(key);
    if (
      old &&
      old.metadata.uid === object.metadata.uid &&
      old.metadata.resourceVersion === object.metadata.resourceVersion &&
      object.metadata.resourceVersion !== undefined
    ) {
      return undefined;
    }
    if (old) file(old, false);
    objects.set(key, object);
    file(object, true);
    return old ? { type: "updated", object, old } : { type: "added", object };
  };

  const remove = (key: string): Change<T> | undefined => {
    const old = objects.get(key);
    if (!old) return undefined;
    objects.delete(key);
    file(old, false);
    return { type: "deleted", object: old };
  };

  return {
    get: (key) => objects.get(key),
    list: () => objects.values(),
    get size() {
      return objects.size;
    },
    indexed: (name, value) => tables.get(name)?.get(value) ?? [],
    set,
    delete: remove,
    replace: (list) => {
      const present = new Set(list.map(keyOf));
      const gone = [...objects.keys()].filter((key) => !present.has(key)).map(remove);
      return [...gone, ...list.map(set)].filter((change) => change !== undefined);
    },
  };
};

/** A store that holds `objects`. */
export const storeOf = <T extends KubeObject>(objects: T[]): Store<T> => {
  const store = createStore<T>();
  store.replace(objects);
  return store;
};
