import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { virtualClock } from "../std/clock.ts";
import { createQueue, type Outcome, type QueueObserver } from "./workqueue.ts";

const start = (
  handle: (key: string) => Promise<Outcome>,
  options: { concurrency?: number; observer?: QueueObserver; maxDelay?: number } = {},
) => {
  const clock = virtualClock();
  const queue = createQueue({ clock, random: () => 0, baseDelay: 100, ...options });
  const stop = new AbortController();
  const running = queue.run({
    concurrency: options.concurrency ?? 1,
    signal: stop.signal,
    handle,
  });
  return {
    clock,
    queue,
    stop: async () => {
      stop.abort();
      await running;
    },
  };
};

describe("A key", () => {
  test("added twice while it waits is worked on once", async () => {
    const worked: string[] = [];
    const gate = Promise.withResolvers<void>();
    const { clock, queue, stop } = start(async (key) => {
      worked.push(key);
      if (key === "first") await gate.promise;
      return undefined;
    });
    queue.add("first");
    await clock.advance(0);
    queue.add("a");
    queue.add("a");
    expect(queue.depth).toBe(1);
    gate.resolve();
    await clock.advance(0);
    expect(worked).toEqual(["first", "a"]);
    await stop();
  });

  test("added while it is worked on is worked on once more, and never twice at a time", async () => {
    let active = 0;
    let most = 0;
    let times = 0;
    const { clock, queue, stop } = start(
      async () => {
        times++;
        most = Math.max(most, ++active);
        await clock.sleep(10);
        active--;
        return undefined;
      },
      { concurrency: 4 },
    );
    queue.add("a");
    await clock.advance(5);
    queue.add("a");
    queue.add("a");
    await clock.advance(100);
    expect({ times, most }).toEqual({ times: 2, most: 1 });
    await stop();
  });

  test("that fails is tried again ever later, others are not held up, and success forgets", async () => {
    const at: number[] = [];
    let healthy = 0;
    const { clock, queue, stop } = start(
      async (key) => {
        if (key === "good") {
          healthy++;
          return undefined;
        }
        at.push(clock.now());
        if (at.length < 5) throw new Error("no");
        return undefined;
      },
      { maxDelay: 400 },
    );
    queue.add("bad");
    await clock.advance(50);
    queue.add("good");
    await clock.advance(0);
    expect(healthy).toBe(1);
    await clock.advance(5000);
    expect(at).toEqual([0, 100, 300, 700, 1100]);
    expect(queue.failures("bad")).toBe(0);
    await stop();
  });

  test("is requeued after the time that its handler asked for", async () => {
    const at: number[] = [];
    const { clock, queue, stop } = start(async () => {
      at.push(clock.now());
      return at.length < 3 ? { requeueAfterMs: 1000 } : undefined;
    });
    queue.add("a");
    await clock.advance(10_000);
    expect(at).toEqual([0, 1000, 2000]);
    await stop();
  });

  test("delayed twice comes at the earlier time, once", async () => {
    const at: number[] = [];
    const { clock, queue, stop } = start(async () => {
      at.push(clock.now());
      return undefined;
    });
    queue.addAfter("a", 500);
    queue.addAfter("a", 200);
    queue.addAfter("a", 900);
    await clock.advance(5000);
    expect(at).toEqual([200]);
    await stop();
  });
});

test("run() ends after the keys under work when its signal aborts", async () => {
  const gate = Promise.withResolvers<void>();
  let finished = false;
  const { clock, queue, stop } = start(async () => {
    await gate.promise;
    finished = true;
    return undefined;
  });
  queue.add("a");
  await clock.advance(0);
  const stopped = stop();
  gate.resolve();
  await stopped;
  expect(finished).toBe(true);
});

test("The observer sees depth, waits, work and results", async () => {
  const seen: string[] = [];
  let first = true;
  const { clock, queue, stop } = start(
    async () => {
      await clock.sleep(2000);
      if (first) {
        first = false;
        throw new Error("no");
      }
      return undefined;
    },
    {
      observer: {
        depth: (n) => seen.push(`depth ${n}`),
        added: () => seen.push("added"),
        retried: () => seen.push("retried"),
        started: (s) => seen.push(`started ${s}`),
        finished: (s, result) => seen.push(`finished ${s} ${result}`),
      },
    },
  );
  queue.add("a");
  await clock.advance(10_000);
  expect(seen).toEqual([
    "added",
    "depth 1",
    "depth 0",
    "started 0",
    "retried",
    "finished 2 error",
    "added",
    "depth 1",
    "depth 0",
    "started 0",
    "finished 2 success",
  ]);
  await stop();
});

test("No key is lost: after the last add of a key a handling of it begins", async () => {
  const steps = fc.array(
    fc.record({ key: fc.constantFrom("a", "b", "c"), wait: fc.nat(30), delay: fc.constantFrom(0, 0, 7, 25) }),
    { maxLength: 60 },
  );
  await fc.assert(
    fc.asyncProperty(steps, fc.integer({ min: 1, max: 3 }), async (adds, concurrency) => {
      const began = new Map<string, number>();
      let order = 0;
      const { clock, queue, stop } = start(
        async (key) => {
          began.set(key, ++order);
          await clock.sleep(10);
          return undefined;
        },
        { concurrency },
      );
      const added = new Map<string, number>();
      for (const { key, wait, delay } of adds) {
        if (delay === 0) {
          queue.add(key);
          added.set(key, ++order);
        } else queue.addAfter(key, delay);
        await clock.advance(wait);
      }
      await clock.advance(1000);
      for (const [key, at] of added) expect(began.get(key)).toBeGreaterThan(at);
      expect(queue.depth).toBe(0);
      await stop();
    }),
    { numRuns: 40 },
  );
});

test("Thousands of keys with nothing to wait for let timers and connections in between", async () => {
  const queue = createQueue();
  const stop = new AbortController();
  let worked = 0;
  for (let key = 0; key < 2000; key++) queue.add(String(key));
  const running = queue.run({
    concurrency: 4,
    signal: stop.signal,
    handle: async () => {
      if (++worked === 2000) stop.abort();
      return undefined;
    },
  });
  const meanwhile = await new Promise<number>((resolve) => setImmediate(() => resolve(worked)));
  await running;
  expect(meanwhile).toBeLessThan(100);
  expect(worked).toBe(2000);
});
