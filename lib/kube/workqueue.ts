import { setImmediate as turn } from "node:timers/promises";
import type { Clock } from "../std/clock.ts";
import { systemClock } from "../std/clock.ts";

/** What a queue reports; see queueMetrics for the Prometheus names. */
export type QueueObserver = {
  depth(depth: number): void;
  added(): void;
  retried(): void;
  /** A key left the queue after waiting so long. */
  started(waitedSeconds: number): void;
  /** A key was worked on for so long. */
  finished(workedSeconds: number, result: "success" | "error" | "requeue" | "requeue_after"): void;
};

export type QueueOptions = {
  clock?: Clock;
  random?: () => number;
  /** First delay after a failure, in ms; doubles per failure of the same key. */
  baseDelay?: number;
  maxDelay?: number;
  observer?: QueueObserver;
};

export type Outcome = { requeueAfterMs?: number } | undefined;

export type Queue = {
  /** Adds the key unless it waits already. A key that is being worked on is worked on once more afterwards. */
  add(key: string): void;
  /** Adds the key after `ms`; of several delays of one key the earliest holds. */
  addAfter(key: string, ms: number): void;
  readonly depth: number;
  /** How often the key failed in a row. */
  failures(key: string): number;
  /**
   * Works on keys, `concurrency` at a time and never one key twice at a time, until the signal aborts; then waits
   * for those under work. A handler that rejects has its key added again, ever later.
   */
  run(options: {
    concurrency: number;
    signal: AbortSignal;
    handle: (key: string, signal: AbortSignal) => Promise<Outcome>;
    onError?: (key: string, error: unknown, retryInMs: number) => void;
  }): Promise<void>;
};

/**
 * A deduplicating queue with a backoff per key and delayed adding, as client-go's workqueue: a key is either
 * waiting, dirty while worked on, delayed, or not here.
 */
export const createQueue = (options: QueueOptions = {}): Queue => {
  const { clock = systemClock, random = Math.random, baseDelay = 50, maxDelay = 60_000, observer } = options;
  /** Waiting keys in order of arrival, with the time they arrived. */
  const waiting = new Map<string, number>();
  const working = new Set<string>();
  /** Keys added while worked on. */
  const dirty = new Set<string>();
  const failed = new Map<string, number>();
  const delayed = new Map<string, { at: number; cancel: AbortController }>();
  const idle: (() => void)[] = [];

  const add = (key: string) => {
    if (waiting.has(key)) return;
    if (working.has(key)) {
      if (!dirty.has(key)) {
        dirty.add(key);
        observer?.added();
      }
      return;
    }
    waiting.set(key, clock.now());
    observer?.added();
    observer?.depth(waiting.size);
    idle.shift()?.();
  };

  const addAfter = (key: string, ms: number) => {
    if (ms <= 0) return add(key);
    const at = clock.now() + ms;
    const earlier = delayed.get(key);
    if (earlier && earlier.at <= at) return;
    earlier?.cancel.abort();
    const cancel = new AbortController();
    delayed.set(key, { at, cancel });
    clock.sleep(ms, cancel.signal).then(
      () => {
        delayed.delete(key);
        add(key);
      },
      () => {}, // replaced by an earlier one, or the queue has stopped
    );
  };

  const take = async (signal: AbortSignal): Promise<string | undefined> => {
    while (!signal.aborted) {
      const first = waiting.entries().next();
      if (!first.done) {
        const [key, since] = first.value;
        waiting.delete(key);
        working.add(key);
        observer?.depth(waiting.size);
        observer?.started((clock.now() - since) / 1000);
        return key;
      }
      const { promise, resolve } = Promise.withResolvers<void>();
      const wake = () => {
        signal.removeEventListener("abort", wake);
        resolve();
      };
      idle.push(wake);
      signal.addEventListener("abort", wake, { once: true });
      await promise;
      const at = idle.indexOf(wake);
      if (at >= 0) idle.splice(at, 1);
    }
    return undefined;
  };

  const done = (key: string) => {
    working.delete(key);
    if (dirty.delete(key)) {
      waiting.set(key, clock.now());
      observer?.depth(waiting.size);
      idle.shift()?.();
    }
  };

  return {
    add,
    addAfter,
    get depth() {
      return waiting.size;
    },
    failures: (key) => failed.get(key) ?? 0,
    run: async ({ concurrency, signal, handle, onError }) => {
      const worker = async () => {
        for (;;) {
          const key = await take(signal);
          if (key === undefined) return;
          const started = clock.now();
          const worked = () => (clock.now() - started) / 1000;
          try {
            const outcome = await handle(key, signal);
            failed.delete(key);
            done(key);
            if (outcome?.requeueAfterMs !== undefined) addAfter(key, outcome.requeueAfterMs);
            observer?.finished(worked(), outcome?.requeueAfterMs === undefined ? "success" : "requeue_after");
          } catch (error) {
            done(key);
            if (signal.aborted) return;
            const failures = (failed.get(key) ?? 0) + 1;
            failed.set(key, failures);
            // Up to a fifth longer, so that keys that failed together are not tried together.
            const delay = Math.min(baseDelay * 2 ** (failures - 1), maxDelay) * (1 + 0.2 * random());
            addAfter(key, delay);
            observer?.retried();
            observer?.finished(worked(), "error");
            onError?.(key, error, delay);
          }
          // Thousands of keys with nothing to wait for must not hold up timers and connections: a Lease ran out by that.
          await turn();
        }
      };
      await Promise.all(Array.from({ length: concurrency }, worker));
      for (const { cancel } of delayed.values()) cancel.abort();
      delayed.clear();
    },
  };
};
