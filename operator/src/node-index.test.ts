import type { DesiredProfile, NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Lease } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { createStore } from "@bulkhead/lib/kube/store.ts";
import { type VirtualClock, virtualClock } from "@bulkhead/lib/std/clock.ts";
import { beforeEach, describe, expect, test } from "vitest";
import { createNodeIndex, type NodeIndex } from "./node-index.ts";
import type { Decisions } from "./plan.ts";
import { slimRuntimes } from "./slim.ts";

const desired = (name: string, revision = "0123456789"): DesiredProfile =>
  ({
    name,
    revision,
    handler: { gvisor: { platform: "systrap" } },
    engine: "bulkhead",
    probe: { interval: "60s", assertIsolation: true },
  }) as DesiredProfile;
const reported = (name: string, more: Partial<ProfileStatus> = {}): ProfileStatus => ({
  name,
  phase: "Ready",
  revision: "0123456789",
  reason: "CanaryPassed",
  message: "",
  ...more,
});

let version = 0;
const node = (name: string, labels: Record<string, string> = {}): KubeObject => ({
  metadata: { name, uid: name, resourceVersion: String(++version), labels },
});
const runtime = (
  name: string,
  profiles: DesiredProfile[],
  status?: Partial<NonNullable<NodeRuntime["status"]>>,
): NodeRuntime => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "NodeRuntime",
  metadata: { name, generation: 2, resourceVersion: String(++version) },
  spec: { profiles },
  ...(status ? { status: { heartbeat: new Date(0).toISOString(), observedGeneration: 2, ...status } } : {}),
});

const nodes = createStore<KubeObject>();
const nodeRuntimes = createStore<NodeRuntime>();
const leases = createStore<Lease>();
const decisions: Decisions = new Map();
let index: NodeIndex;
let clock: VirtualClock;
const namesOf = (profile: string, selector: Record<string, string> | undefined) =>
  index.nodesOf(profile, selector).map(({ name }) => name);

beforeEach(() => {
  nodes.replace([
    node("b"),
    node("a"),
    node("w", { "kubernetes.io/os": "windows" }),
    node("x", { wall: "yes" }),
  ]);
  nodeRuntimes.replace([]);
  leases.replace([]);
  decisions.clear();
  clock = virtualClock();
  index = createNodeIndex({ nodes, nodeRuntimes, leases, decisions, staleAfterMs: 180_000, clock });
});

test("A profile sees the nodes that it selects, by name, and looks anew when its selector is another", () => {
  expect(namesOf("all", {})).toEqual(["a", "b", "x"]);
  expect(namesOf("all", { wall: "yes" })).toEqual(["x"]);
  expect(namesOf("invalid", undefined)).toEqual([]);
  nodeRuntimes.set(runtime("b", [desired("invalid")]));
  index.changed("b");
  expect(namesOf("invalid", undefined)).toEqual(["b"]);
});

test("A node that comes, goes or gets a label touches the profiles that see it, and no other", () => {
  namesOf("all", {});
  namesOf("few", { wall: "yes" });
  nodes.set(node("c"));
  expect(index.changed("c")).toEqual(["all"]);
  nodes.set(node("c", { wall: "yes" }));
  expect(index.changed("c")).toEqual(["few"]);
  nodes.delete("c");
  expect(index.changed("c")).toEqual(["all", "few"]);
  expect(index.changed("c")).toEqual([]);
  expect(namesOf("few", { wall: "yes" })).toEqual(["x"]);
});

describe("An agent's report touches", () => {
  beforeEach(() => {
    nodeRuntimes.set(
      runtime("a", [desired("one"), desired("two")], { profiles: [reported("one"), reported("two")] }),
    );
    namesOf("one", {});
    namesOf("two", {});
  });
  const says = (status: Partial<NonNullable<NodeRuntime["status"]>>) => {
    nodeRuntimes.set(runtime("a", [desired("one"), desired("two")], status));
    return index.changed("a");
  };
  const both = [reported("one"), reported("two")];
  const minutes = (count: number) => new Date(count * 60_000).toISOString();

  test.each<[string, Partial<NonNullable<NodeRuntime["status"]>>, string[]]>([
    ["nothing, when it says the same", { profiles: both }, []],
    ["nothing, when only time went on", { profiles: both, heartbeat: minutes(1) }, []],
    ["all, when it was silent for long", { profiles: both, heartbeat: minutes(2) }, ["one", "two"]],
    [
      "the profile that it says another thing of",
      { profiles: [reported("one"), reported("two", { phase: "Failed" })] },
      ["two"],
    ],
    ["a profile that it does not name any more", { profiles: [reported("two")] }, ["one"]],
    [
      "nothing, when latencies and pods are others",
      { profiles: [reported("one", { startSeconds: { p50: 9, p99: 9 }, pods: { x: 1 } }), reported("two")] },
      [],
    ],
    ["nothing, when it has seen a newer spec and serves", { profiles: both, observedGeneration: 3 }, []],
  ])("%s", (_what, status, touched) => {
    expect(says(status)).toEqual(touched);
  });

  test("nothing by its Lease, unless it was silent for long", () => {
    const renewed = (at: string) => {
      leases.set({ metadata: { name: "a", resourceVersion: String(++version) }, spec: { renewTime: at } });
      return index.changed("a");
    };
    expect(renewed(minutes(1))).toEqual([]);
    expect(renewed(minutes(2))).toEqual([]);
    expect(index.nodesOf("one", {})[0]?.heartbeat).toBe(120_000);
    expect(renewed(minutes(4))).toEqual(["one", "two"]);
    // Its status, written before, is no news.
    expect(says({ profiles: both, heartbeat: minutes(3) })).toEqual([]);
    expect(index.nodesOf("one", {})[0]?.heartbeat).toBe(240_000);
  });

  test("since when a revision serves: of the same one, without a failure, a boot or a silence between", async () => {
    const since = (selector = {}) => index.nodesOf("one", selector)[0]?.readySince;
    let passed = 0;
    const after = async (seconds: number, more: Partial<ProfileStatus> = {}) => {
      await clock.advance(seconds * 1000);
      passed += seconds;
      says({ profiles: [reported("one", more)], heartbeat: new Date(clock.now()).toISOString() });
      return since();
    };
    expect(since()).toBe(0);
    expect(await after(60)).toBe(0);
    // Another selector is no new beginning.
    expect(since({ wall: "yes" })).toBe(0);
    const next = { revision: "ffffffffff" };
    expect(await after(60, next)).toBe(120_000);
    expect(await after(60, { ...next, phase: "Failed" })).toBeUndefined();
    expect(await after(60, next)).toBe(240_000);
    expect(await after(200, next)).toBe(passed * 1000);
  });

  test.each([
    ["as its agent says", -3_600_000, -3_600_000],
    ["from now on where its agent's clock is ahead", 3_600_000, 0],
    ["from now on where its agent does not say it", undefined, 0],
  ])(
    "what serves already when an operator begins has done so %s; then its own clock counts",
    async (_title, told, expected) => {
      const more = told === undefined ? {} : { readySince: new Date(told).toISOString() };
      says({ profiles: [reported("one", more)] });
      const anew = createNodeIndex({ nodes, nodeRuntimes, leases, decisions, staleAfterMs: 180_000, clock });
      const since = () => anew.nodesOf("one", {})[0]?.readySince;
      expect(since()).toBe(expected);
      await clock.advance(60_000);
      const next = { revision: "ffffffffff", readySince: new Date(0).toISOString() };
      says({ profiles: [reported("one", next)] });
      anew.changed("a");
      expect(since()).toBe(60_000);
    },
  );

  test("what was decided stands until it is written, and a report then touches nothing", () => {
    const next = desired("one", "ffffffffff");
    decisions.set("a", new Map([["one", next]]));
    index.decided("a", "one");
    expect(index.nodesOf("one", {})[0]?.assigned).toBe(next);
    nodeRuntimes.set(runtime("a", [next, desired("two")], { profiles: both }));
    expect(index.changed("a")).toEqual([]);
  });
});

test("Nodes that hold the same revision hold one object, and reports share what they say", () => {
  const slim = slimRuntimes();
  const said = {
    ...reported("one"),
    canary: {
      passed: true,
      at: "1970-01-01T00:00:00Z",
      startSeconds: 1,
      kernel: "4.4.0",
      assertions: ["kernel-differs"],
      failures: 0,
    },
  };
  const [one, other] = ["a", "b"].map((name) =>
    slim(structuredClone(runtime(name, [desired("one")], { profiles: [said] }))),
  );
  expect(one?.spec.profiles[0]).toBe(other?.spec.profiles[0]);
  expect(one?.status?.profiles?.[0]?.canary?.assertions).toBe(
    other?.status?.profiles?.[0]?.canary?.assertions,
  );
  expect(one?.status?.profiles).toEqual([said]);
});
