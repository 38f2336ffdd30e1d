import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { NotWanted, Overtaken, Wanted } from "./wanted.ts";

const a = { name: "a", revision: "aaaaaaaaaa" };
const b = { name: "b", revision: "bbbbbbbbbb" };

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("work on a profile ends at once when it is gone or another revision is wanted", () => {
  const wanted = new Wanted();
  wanted.take([a, b]);
  wanted.begin();
  const [ofA, ofB] = [wanted.signalOf(a), wanted.signalOf(b)];
  wanted.take([{ ...a }, b]);
  expect([ofA.aborted, ofB.aborted]).toEqual([false, false]);
  const newer = { ...a, revision: "aaaaaaaaab" };
  wanted.take([newer, b]);
  expect([ofA.aborted, ofB.aborted]).toEqual([true, false]);
  expect(ofA.reason).toBeInstanceOf(NotWanted);
  expect([wanted.signalOf(a).aborted, wanted.signalOf(newer).aborted]).toEqual([true, false]);
  wanted.take([newer]);
  expect(ofB.reason).toBeInstanceOf(NotWanted);
});

test("what goes on being wanted has some time, and is done again in the pass that comes then", () => {
  const wanted = new Wanted();
  wanted.take([a]);
  wanted.begin();
  const ofA = wanted.signalOf(a);
  wanted.take([a, b]);
  vi.advanceTimersByTime(19_000);
  expect(ofA.aborted).toBe(false);
  vi.advanceTimersByTime(2000);
  expect(ofA.reason).toBeInstanceOf(Overtaken);
  // The same pass comes to it only now.
  expect(wanted.signalOf(a).reason).toBeInstanceOf(Overtaken);
  wanted.begin();
  vi.advanceTimersByTime(60_000);
  expect([wanted.signalOf(a).aborted, wanted.signalOf(b).aborted]).toEqual([false, false]);
});
