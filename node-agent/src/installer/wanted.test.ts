import { expect, test } from "vitest";
import { NotWanted, Wanted } from "./wanted.ts";

const a = { name: "a", revision: "aaaaaaaaaa" };
const b = { name: "b", revision: "bbbbbbbbbb" };

test("work on a profile ends when it is gone or another revision is wanted, and nobody else's does", () => {
  const wanted = new Wanted();
  wanted.take([a, b]);
  const [ofA, ofB] = [wanted.signalOf(a), wanted.signalOf(b)];
  wanted.take([{ ...a }, b]);
  expect([ofA.aborted, ofB.aborted]).toEqual([false, false]);
  const newer = { ...a, revision: "aaaaaaaaab" };
  wanted.take([newer, b]);
  expect([ofA.aborted, ofB.aborted]).toEqual([true, false]);
  expect(ofA.reason).toBeInstanceOf(NotWanted);
  expect([wanted.signalOf(a).aborted, wanted.signalOf(newer).aborted]).toEqual([true, false]);
  wanted.take([newer]);
  expect(ofB.aborted).toBe(true);
});
