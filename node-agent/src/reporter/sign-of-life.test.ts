import { apiVersion, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { expect, test } from "vitest";
import { createSigns } from "./sign-of-life.ts";
import { heartbeatMs } from "./status.ts";

const runtime = (namespace?: string, uid = "1"): NodeRuntime => ({
  apiVersion,
  kind: "NodeRuntime",
  metadata: { name: "a", uid, ...(namespace ? { annotations: { [labels.leases]: namespace } } : {}) },
  spec: { profiles: [] },
});

/** A fake of the API: what was asked, and what it answers to a patch. */
const fake = () => {
  let now = 1_000_000;
  const asked: string[] = [];
  const warned: string[] = [];
  let answer: RuntimeError | undefined;
  const request = (method: string) => async (_resource: unknown, name: unknown, body: unknown) => {
    const of = typeof name === "string" ? body : name;
    asked.push(`${method} ${JSON.stringify((of as { spec: object }).spec)}`);
    if (method === "patch" && answer) throw answer;
    return of as never;
  };
  const signs = createSigns(
    { patch: request("patch"), create: request("create") } as never,
    { warn: (_: object, text: string) => void warned.push(text) } as never,
    { now: () => now },
  );
  const pass = (ms: number) => {
    now += ms;
  };
  const answering = (error: RuntimeError | undefined) => {
    answer = error;
  };
  const renew = (of: NodeRuntime) => signs.renew(of, new AbortController().signal);
  return { asked, warned, pass, answering, renew };
};

test("Where no operator reads Leases, none is written: the status is the sign of life", async () => {
  const { renew, asked } = fake();
  expect(await renew(runtime())).toBe(false);
  expect(asked).toEqual([]);
});

test("A Lease is renewed when it is due, and at once for another NodeRuntime of the name", async () => {
  const { renew, asked, pass } = fake();
  expect(await renew(runtime("home"))).toBe(true);
  pass(heartbeatMs - 1);
  expect(await renew(runtime("home"))).toBe(true);
  expect(asked).toEqual(['patch {"holderIdentity":"a","renewTime":"1970-01-01T00:16:40.000000Z"}']);
  expect(await renew(runtime("home", "2"))).toBe(true);
  pass(heartbeatMs);
  expect(await renew(runtime("home", "2"))).toBe(true);
  expect(asked).toHaveLength(3);
});

test("A Lease is renewed at once after the node's clock was set back, and not when it has caught up", async () => {
  const { renew, asked, pass } = fake();
  expect(await renew(runtime("home"))).toBe(true);
  pass(-600_000);
  expect(await renew(runtime("home"))).toBe(true);
  expect(asked[1]).toBe('patch {"holderIdentity":"a","renewTime":"1970-01-01T00:06:40.000000Z"}');
  pass(heartbeatMs - 1);
  expect(await renew(runtime("home"))).toBe(true);
  expect(asked).toHaveLength(2);
});

test("A Lease that is not there is made", async () => {
  const { renew, asked, answering } = fake();
  answering(new RuntimeError("not-found", "none"));
  expect(await renew(runtime("home"))).toBe(true);
  expect(asked.map((each) => each.split(" ")[0])).toEqual(["patch", "create"]);
});

test("A Lease that is refused is said once, tried again, and the status is the sign of life meanwhile", async () => {
  const { renew, warned, answering } = fake();
  answering(new RuntimeError("permission-denied", "no"));
  expect(await renew(runtime("home"))).toBe(false);
  expect(await renew(runtime("home"))).toBe(false);
  expect(warned).toHaveLength(1);
  answering(undefined);
  expect(await renew(runtime("home"))).toBe(true);
});
