import { expect, test, vi } from "vitest";
import { type Rank, Turns, turn } from "./turns.ts";

/** Work that ends when it is told to, and the order in which it began. */
const workshop = (turns: Turns) => {
  const began: string[] = [];
  const work = (name: string, rank: Rank, signal = new AbortController().signal) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const done = turns.run(rank, signal, () => {
      began.push(name);
      return promise;
    });
    return { end: resolve, fail: reject, done };
  };
  return { began, work };
};
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test("no more than the slots are at work, and what is nearest its end goes first", async () => {
  const { began, work } = workshop(new Turns(2, 60_000));
  const first = work("first", turn.sandbox);
  work("second", turn.sandbox);
  work("third", turn.sandbox);
  const create = work("create", turn.create);
  work("start", turn.start);
  await settle();
  expect(began).toEqual(["first", "second"]);
  first.end();
  await first.done;
  await settle();
  expect(began).toEqual(["first", "second", "start"]);
  expect(create).toBeDefined();
});

test("work that fails gives its turn on, and its error", async () => {
  const { began, work } = workshop(new Turns(1, 60_000));
  const bad = work("bad", turn.create);
  work("next", turn.create);
  await settle();
  bad.fail(new Error("no"));
  await expect(bad.done).rejects.toThrow("no");
  await settle();
  expect(began).toEqual(["bad", "next"]);
});

test("who gives up while waiting never begins, and takes nobody's turn", async () => {
  const { began, work } = workshop(new Turns(1, 60_000));
  const holder = work("holder", turn.create);
  const leaving = new AbortController();
  const gone = work("gone", turn.create, leaving.signal);
  work("next", turn.create);
  await settle();
  leaving.abort(new Error("left"));
  await expect(gone.done).rejects.toThrow("left");
  holder.end();
  await settle();
  expect(began).toEqual(["holder", "next"]);
});

test("work that hangs holds nobody up for longer than a quantum, and gives one turn only", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const { began, work } = workshop(new Turns(1, 250));
    const hung = work("hung", turn.sandbox);
    const next = work("next", turn.sandbox);
    work("last", turn.sandbox);
    await settle();
    vi.advanceTimersByTime(249);
    await settle();
    expect(began).toEqual(["hung"]);
    vi.advanceTimersByTime(1);
    await settle();
    expect(began).toEqual(["hung", "next"]);
    hung.end();
    await hung.done;
    await settle();
    expect(began).toEqual(["hung", "next"]);
    next.end();
    await settle();
    expect(began).toEqual(["hung", "next", "last"]);
  } finally {
    vi.useRealTimers();
  }
});
