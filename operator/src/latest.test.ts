import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { createStore } from "@bulkhead/lib/kube/store.ts";
import { virtualClock } from "@bulkhead/lib/std/clock.ts";
import { expect, test } from "vitest";
import { createLatest } from "./latest.ts";

const at = (resourceVersion: number, uid = "u1"): KubeObject => ({
  metadata: { name: "n", uid, resourceVersion: String(resourceVersion) },
});
const setUp = () => {
  const store = createStore<KubeObject>();
  const clock = virtualClock();
  return { store, clock, latest: createLatest(store, clock) };
};

test("What was written is seen until the watch has it, and then what the watch has", () => {
  const { store, latest } = setUp();
  latest.wrote(at(5));
  expect(latest.get("n")).toEqual(at(5));
  store.set(at(4));
  expect([latest.seen(at(4)), latest.get("n")]).toEqual([false, at(5)]);
  store.set(at(5));
  expect([latest.seen(at(5)), latest.seen(at(5))]).toEqual([true, false]);
  store.set(at(6));
  expect([latest.seen(at(6)), latest.get("n")]).toEqual([false, at(6)]);
  latest.wrote(at(5));
  expect(latest.get("n")).toEqual(at(6));
});

test("A write that the watch never brings, or of an object that came anew, is not believed", async () => {
  const { store, clock, latest } = setUp();
  latest.wrote(at(5));
  await clock.advance(31_000);
  expect(latest.get("n")).toBeUndefined();
  latest.wrote(at(7));
  store.set(at(6, "u2"));
  expect(latest.get("n")).toEqual(at(6, "u2"));
  latest.wrote(at(9, "u2"));
  latest.forget("n");
  expect(latest.get("n")).toEqual(at(6, "u2"));
});
