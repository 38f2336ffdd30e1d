import { setImmediate as turn } from "node:timers/promises";
import type { Logger } from "pino";
import { type Clock, systemClock } from "../std/clock.ts";
import { hasCode, messageOf } from "../std/errors.ts";
import { backoff } from "./backoff.ts";
import { apiStatusOf, type Client, isExpired, type Scope } from "./client.ts";
import { type KubeObject, keyOf, type Resource } from "./object.ts";
import { type Change, createStore, type Indexes, type Store } from "./store.ts";

export type ReflectorOptions<T extends KubeObject> = Scope & {
  client: Pick<Client, "list" | "watch">;
  resource: Resource<T>;
  /** What of each object is kept in memory; the rest is dropped as it arrives. Undefined: the object is not kept. */
  transform?: (object: T) => T | undefined;
  indexes?: Indexes<T>;
  log?: Logger;
  clock?: Clock;
  random?: () => number;
  pageSize?: number;
  /** A watch that carries nothing for so long is dead. The API server sends a bookmark every minute. */
  idleMs?: number;
  /** A server that does not know the resource is as good as one without objects; it is asked again now and then. */
  optional?: boolean;
};

export type Reflector<T extends KubeObject> = {
  readonly store: Store<T>;
  /** Called for each change, in order, first for what is there already. Must not throw. */
  on(handler: (change: Change<T>) => void): void;
  /** Resolves when the first list is in the store. */
  readonly synced: Promise<void>;
  readonly isSynced: boolean;
  /** False while the server does not know the resource, or was not asked yet. */
  readonly isServed: boolean;
  /** Lists and watches until the signal aborts. Never rejects: failures are logged and tried again. */
  run(signal: AbortSignal): Promise<void>;
};

/** An API server comes to know a resource by an upgrade: no need to ask often. */
const unservedMs = 5 * 60_000;

/** managedFields can be most of an object, and nobody here reads them. */
const withoutManagedFields = <T extends KubeObject>(object: T): T => {
  if (object.metadata.managedFields) delete object.metadata.managedFields;
  return object;
};

/**
 * Keeps a copy of all objects of a resource: list in pages, watch from there with bookmarks, list anew only when
 * the server has forgotten our place (410). Follows client-go's Reflector.
 */
export const createReflector = <T extends KubeObject>(options: ReflectorOptions<T>): Reflector<T> => {
  const { client, resource, log, clock = systemClock, random = Math.random } = options;
  const scope: Scope = {
    ...(options.namespace ? { namespace: options.namespace } : {}),
    ...(options.labelSelector ? { labelSelector: options.labelSelector } : {}),
    ...(options.fieldSelector ? { fieldSelector: options.fieldSelector } : {}),
  };
  const store = createStore<T>(options.indexes);
  const handlers: ((change: Change<T>) => void)[] = [];
  const { promise: synced, resolve: markSynced } = Promise.withResolvers<void>();
  let isSynced = false;
  let isServed = false;
  const keep = (object: T): T | undefined => {
    const kept = withoutManagedFields(object);
    return options.transform ? options.transform(kept) : kept;
  };
  const tell = (change: Change<T> | undefined) => {
    if (change) for (const handler of handlers) handler(change);
  };

  /** All pages; returns the resource version to watch from. */
  const relist = async (signal: AbortSignal): Promise<string> => {
    const items: T[] = [];
    let at: string | undefined;
    let resourceVersion = "";
    do {
      const page = await client.list(resource, {
        ...scope,
        limit: options.pageSize ?? 500,
        signal,
        ...(at ? { continue: at } : {}),
      });
      for (const item of page.items) {
        const kept = keep(item);
        if (kept) items.push(kept);
      }
      resourceVersion = page.resourceVersion;
      at = page.continue;
    } while (at);
    for (const [index, change] of store.replace(items).entries()) {
      tell(change);
      // Handlers of thousands of objects in one go would hold up all else.
      if (index % 100 === 99) await turn();
    }
    isServed = true;
    isSynced = true;
    markSynced();
    log?.debug({ resource: resource.plural, objects: store.size }, "listed");
    return resourceVersion;
  };

  const run = async (signal: AbortSignal): Promise<void> => {
    const delays = backoff({ base: 800, max: 30_000, jitter: 1, random });
    let resourceVersion: string | undefined;
    while (!signal.aborted) {
      const started = clock.now();
      try {
        resourceVersion ??= await relist(signal);
        // Spread over 5 to 10 minutes, so that not all watches of all clients end together.
        const timeoutSeconds = Math.round(300 * (1 + random()));
        for await (const event of client.watch(resource, {
          ...scope,
          resourceVersion,
          signal,
          timeoutSeconds,
          ...(options.idleMs ? { idleMs: options.idleMs } : {}),
        })) {
          delays.reset();
          if (event.type === "BOOKMARK") {
            resourceVersion = event.object.metadata.resourceVersion;
            continue;
          }
          resourceVersion = event.object.metadata.resourceVersion ?? resourceVersion;
          const kept = event.type === "DELETED" ? undefined : keep(event.object);
          tell(kept ? store.set(kept) : store.delete(keyOf(event.object)));
        }
        // A server that ends every watch at once must not be asked again at once.
        if (clock.now() - started < 1000) await clock.sleep(delays.next(), signal);
      } catch (error) {
        if (signal.aborted) return;
        let wait = Math.max(apiStatusOf(error)?.retryAfterMs ?? 0, delays.next());
        if (options.optional && hasCode(error, "not-found")) {
          isServed = false;
          isSynced = true;
          markSynced();
          wait = unservedMs;
        } else if (isExpired(error)) {
          log?.info({ resource: resource.plural }, "resource version expired: listing anew");
          resourceVersion = undefined;
        } else {
          log?.warn({ resource: resource.plural, err: messageOf(error) }, "list or watch failed");
        }
        try {
          await clock.sleep(wait, signal);
        } catch {
          return;
        }
      }
    }
  };

  return {
    store,
    on: (handler) => {
      handlers.push(handler);
      for (const object of store.list()) handler({ type: "added", object });
    },
    synced,
    get isSynced() {
      return isSynced;
    },
    get isServed() {
      return isServed;
    },
    run,
  };
};
