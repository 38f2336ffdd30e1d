import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { expect, test } from "vitest";
import { check } from "./check.ts";

const namespace = "bulkhead-system";
const clockFrom = () => {
  let now = 0;
  const sleep = async (ms: number): Promise<void> => {
    now += ms;
  };
  return { now: () => now, sleep };
};
/** A cluster whose Lease is as `at` says, by the seconds that passed. */
const cluster = (clock: { now(): number }, at: (seconds: number) => object | undefined) =>
  ({
    list: async () => ({ items: [{}, {}], resourceVersion: "1" }),
    get: async () => {
      const spec = at(clock.now() / 1000);
      if (!spec) throw new RuntimeError("not-found", "no lease");
      return { metadata: { name: "bulkhead-operator" }, spec };
    },
  }) as never;

test("is content when the Lease is renewed while it looks", async () => {
  const clock = clockFrom();
  const at = (seconds: number) => ({ holderIdentity: "a", renewTime: String(Math.floor(seconds / 4)) });
  expect(await check(cluster(clock, at), namespace, { clock })).toEqual({ profiles: 2, holder: "a" });
});

test.each<[string, object | undefined, RegExp]>([
  [
    "a Lease that nobody holds",
    { renewTime: "1" },
    /nobody holds Lease "bulkhead-system\/bulkhead-operator"/,
  ],
  ["no Lease", undefined, /nobody holds/],
  ["a holder that is dead", { holderIdentity: "a", renewTime: "1" }, /"a" has not renewed .* for 60 s/],
])("says what is wrong with %s, and does not wait for ever", async (_title, spec, message) => {
  const clock = clockFrom();
  await expect(
    check(
      cluster(clock, () => spec),
      namespace,
      { clock },
    ),
  ).rejects.toThrow(message);
});

test("says so where the definitions are missing", async () => {
  const client = {
    list: async () => {
      throw new RuntimeError("not-found", "no such resource");
    },
  } as never;
  await expect(check(client, namespace)).rejects.toThrow("apply the chart's crds/");
});
