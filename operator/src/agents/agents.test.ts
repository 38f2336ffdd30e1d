import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { AgentPod, DaemonSet } from "@bulkhead/lib/kube/resources.ts";
import { agentsView } from "@bulkhead/lib/view/agents.ts";
import { describe, expect, test } from "vitest";
import { planAgents } from "./plan.ts";

const now = Date.parse("2026-01-01T12:00:00Z");
const minutes = (ago: number): string => new Date(now - ago * 60_000).toISOString();
const owner = (uid: string) => ({
  apiVersion: "apps/v1",
  kind: "DaemonSet",
  name: "agents",
  uid,
  controller: true,
});
const is = (ready: boolean, containers = ready, since?: number): AgentPod["status"] => ({
  conditions: [
    {
      ...{ type: "Ready", status: ready ? "True" : "False" },
      ...(since === undefined ? {} : { lastTransitionTime: minutes(since) }),
    },
  ],
  containerStatuses: [{ ready: true }, { ready: containers }],
});

/** How a node's pod stands; `b` is the version that is on its way, `a` the one before. */
const pods = {
  a: { hash: "a", made: 600, status: is(true) },
  "a-broken": { hash: "a", made: 600, status: is(false) },
  /** The node controller says that it is not ready; its kubelet has said nothing for a while. */
  "a-lost": { hash: "a", made: 600, status: is(false, true) },
  "a-ends": { hash: "a", made: 600, status: is(true), ends: 1 },
  "a-stays": { hash: "a", made: 600, status: is(true), ends: 11 },
  b: { hash: "b", made: 3, status: is(true) },
  "b-soaks": { hash: "b", made: 600, status: is(true, true, 2) },
  "b-new": { hash: "b", made: 1, status: is(false) },
  "b-late": { hash: "b", made: 11, status: is(false) },
  /** Its node booted a minute ago. */
  "b-again": { hash: "b", made: 600, status: is(false, false, 1) },
  "b-lost": { hash: "b", made: 11, status: is(false, true) },
  other: { hash: "a", made: 600, status: is(true), uid: "another-daemonset" },
} satisfies Record<
  string,
  { hash: string; made: number; status: AgentPod["status"]; ends?: number; uid?: string }
>;
type Kind = keyof typeof pods;

type Setting = {
  rollout?: object | string;
  paused?: boolean;
  observed?: number;
  desired?: number;
  /** What NodeRuntimes say, by the node's number; every node has one profile that is Ready when left out. */
  says?: Record<number, NodeRuntime["status"] | "nothing">;
  asked?: number[];
  labels?: Record<number, Record<string, string>>;
};

const name = (at: number): string => `n${String(at).padStart(3, "0")}`;
const look = (kinds: Kind[], setting: Setting = {}) => {
  const { rollout = {}, paused, observed = 2, desired = kinds.length, says = {}, asked = [] } = setting;
  const daemonSet: DaemonSet = {
    metadata: {
      ...{ name: "agents", namespace: "home", uid: "ours", generation: 2 },
      annotations: {
        [labels.agentRollout]: typeof rollout === "string" ? rollout : JSON.stringify(rollout),
        ...(paused ? { [labels.agentRolloutPaused]: "true" } : {}),
      },
    },
    spec: {
      template: { spec: { containers: [{ name: "c", env: [{ name: "AGENT_VERSION", value: "2.0" }] }] } },
    },
    status: { observedGeneration: observed, desiredNumberScheduled: desired },
  };
  const revision = (hash: string, number: number, uid = "ours") => ({
    metadata: { name: hash, labels: { "controller-revision-hash": hash }, ownerReferences: [owner(uid)] },
    revision: number,
  });
  const all = kinds.map((kind, at): AgentPod => {
    const {
      hash,
      made,
      status,
      ends,
      uid = "ours",
    } = pods[kind] as (typeof pods)["a-ends"] & { uid?: string };
    return {
      metadata: {
        ...{ name: `pod-${at}`, namespace: "home", uid: `uid-${at}`, creationTimestamp: minutes(made) },
        ...(ends === undefined ? {} : { deletionTimestamp: minutes(ends) }),
        labels: { "controller-revision-hash": hash },
        ownerReferences: [owner(uid)],
      },
      spec: { nodeName: name(at) },
      ...(status ? { status } : {}),
    };
  });
  const runtimeOf = (node: string): NodeRuntime | undefined => {
    const said = says[Number(node.slice(1))] ?? { heartbeat: minutes(0) };
    if (said === "nothing") return undefined;
    return { metadata: { name: node }, spec: { profiles: [{ name: "p" }] }, status: said } as NodeRuntime;
  };
  const view = agentsView({
    now,
    daemonSets: [{ metadata: { name: "somebody-elses" } }, daemonSet],
    revisions: [revision("b", 2), revision("a", 1), revision("c", 3, "another-daemonset")],
    pods: all,
    nodeRuntimes: { get: runtimeOf },
    asked: new Set(asked.map((at) => `uid-${at}`)),
  });
  const replaced = view
    ? planAgents(view, {
        now,
        staleAfterMs: 180_000,
        labelsOf: (node) => setting.labels?.[Number(node.slice(1))] ?? {},
        reportOf: (node) => {
          const runtime = runtimeOf(node);
          const heartbeat = Date.parse(runtime?.status?.heartbeat ?? "");
          return runtime && { profiles: 1, ...(Number.isNaN(heartbeat) ? {} : { heartbeat }) };
        },
      }).map((pod) => Number(pod.uid.slice("uid-".length)))
    : undefined;
  return { view, replaced };
};

describe("A version of Bulkhead's own", () => {
  const table: [title: string, nodes: Kind[], setting: Setting, reason: string, replaced: number[]][] = [
    ["goes to one canary first", ["a", "a", "a"], {}, "RollingOut", [0]],
    ["waits for its canary", ["b-new", "a", "a"], {}, "RollingOut", []],
    ["waits while its canary's former agent ends", ["a-ends", "a", "a"], {}, "RollingOut", []],
    [
      "waits for one that was asked to end, before any watch tells",
      ["a", "a"],
      { asked: [0] },
      "RollingOut",
      [],
    ],
    ["waits while a node has no agent", ["a", "a"], { desired: 3 }, "RollingOut", []],
    ["stops at the first node that is not ready in time", ["b-late", "a", "a"], {}, "FailureThreshold", []],
    ["stops where a node went away with it", ["b-lost", "a", "a"], {}, "FailureThreshold", []],
    ["stops where the former agent does not end", ["a-stays", "a", "a"], {}, "FailureThreshold", []],
    [
      "goes on after one failure where two are allowed",
      ["b-late", "a", "a"],
      { rollout: { failureThreshold: 2 } },
      "RollingOut",
      [1],
    ],
    [
      "goes to the others after the canary, so many at a time",
      ["b", "a", "a", "a", "a"],
      { rollout: { maxUnavailable: 2 } },
      "RollingOut",
      [1, 2],
    ],
    ["counts a share of the nodes", ["b", ...Array<Kind>(19).fill("a")], {}, "RollingOut", [1, 2]],
    [
      "counts those under way",
      ["b", "b-new", "a", "a"],
      { rollout: { maxUnavailable: 2 } },
      "RollingOut",
      [2],
    ],
    ["goes on where an agent ended by itself", ["b", "b", "b-new", "a"], {}, "RollingOut", []],
    ["counts a node that booted as under way", ["b", "b-again", "a"], {}, "RollingOut", []],
    [
      "waits until its canary has been ready for minReadySeconds",
      ["b-soaks", "a", "a"],
      { rollout: { minReadySeconds: 300 } },
      "RollingOut",
      [],
    ],
    [
      "goes on when its canary has been ready for minReadySeconds",
      ["b-soaks", "a", "a"],
      { rollout: { minReadySeconds: 120 } },
      "RollingOut",
      [1],
    ],
    [
      "is not rolled out before the last node has been ready for minReadySeconds",
      ["b", "b-soaks"],
      { rollout: { minReadySeconds: 121 } },
      "RollingOut",
      [],
    ],
    ["is held by a pause", ["b", "a"], { paused: true }, "Paused", []],
    ["is rolled out, paused or not, when every node has it", ["b", "b"], { paused: true }, "RolledOut", []],
    ["leaves a node that is gone for a while, and goes on", ["b", "a-lost", "a"], {}, "RollingOut", [2]],
    ["is rolled out where only such a node is left", ["b", "a-lost"], {}, "RolledOut", []],
    ["mends a node whose former agent is broken first", ["a", "a", "a-broken"], {}, "RollingOut", [2]],
    [
      "goes back from the nodes that hold a bad one at once",
      ["b", "a-broken", "a-broken", "a"],
      {},
      "RollingOut",
      [1, 2, 3],
    ],
    ["leaves pods of others alone", ["b", "other"], { desired: 1 }, "RolledOut", []],
    [
      "has its canary among the nodes that are named",
      ["a", "a"],
      { rollout: { canarySelector: { canary: "yes" } }, labels: { 1: { canary: "yes" } } },
      "RollingOut",
      [1],
    ],
    [
      "does not take another node for the canary that is named",
      ["b", "a", "a"],
      { rollout: { canarySelector: { canary: "yes" } }, labels: { 1: { canary: "yes" } } },
      "RollingOut",
      [1],
    ],
    ["is tried where there is a profile to prove", ["a", "a"], { says: { 0: "nothing" } }, "RollingOut", [1]],
    [
      "is tried anywhere where no node has a profile",
      ["a", "a"],
      { says: { 0: "nothing", 1: "nothing" } },
      "RollingOut",
      [0],
    ],
    [
      "is tried last where the agent is silent",
      ["a", "a"],
      { says: { 0: { heartbeat: minutes(30) } } },
      "RollingOut",
      [1],
    ],
    ["goes nowhere by settings that nobody understands", ["a", "a"], { rollout: "{" }, "InvalidSpec", []],
    [
      "goes nowhere by settings that are wrong",
      ["a", "a"],
      { rollout: { maxUnavailable: 0 } },
      "InvalidSpec",
      [],
    ],
  ];
  test.each(table)("%s", (_title, nodes, setting, reason, replaced) => {
    const found = look(nodes, setting);
    expect({ reason: found.view?.reason, replaced: found.replaced }).toEqual({ reason, replaced });
  });

  test("is told as paused while nodes wait, also where it was stopped besides", () => {
    const { view } = look(["b-late", "a"], { paused: true });
    expect(view).toMatchObject({ reason: "FailureThreshold", paused: true });
    expect(look(["b-late", "b"], { paused: true }).view?.paused).toBe(false);
    expect(look(["b-late", "a"]).view?.paused).toBe(false);
  });

  test("tells of a node that is ready, though not for long enough", () => {
    const { view } = look(["b-soaks", "a"], { rollout: { minReadySeconds: 300 } });
    expect(view?.message).toBe("0 of 2 nodes have it, 1 updating (1 ready for less than 300 s), 1 waiting");
  });

  test("is nothing to speak of before the DaemonSet's controller has looked at it", () => {
    expect(look(["a", "a"], { observed: 1 }).view).toBeUndefined();
  });

  const fronted = { name: "containerd", version: "2", socket: "/s", fronted: true };
  const broken = {
    engine: fronted,
    conditions: [
      {
        type: "RuntimeReady",
        status: "False",
        reason: "EngineFailed",
        message: "it ends",
        lastTransitionTime: "",
      },
    ] as NonNullable<NonNullable<NodeRuntime["status"]>["conditions"]>,
  };
  test("stops at once where its agent says that what served before does not", () => {
    const { view, replaced } = look(["b-new", "a", "a"], {
      says: { 0: { ...broken, heartbeat: minutes(0) } },
    });
    expect(view).toMatchObject({
      version: "2.0",
      reason: "FailureThreshold",
      message:
        "stopped: 1 nodes failed: n000: EngineFailed: it ends; 0 of 3 nodes have it, 0 updating, 2 waiting",
      count: { failed: 1, waiting: 2 },
    });
    expect(replaced).toEqual([]);
  });
  test("is not judged by what the agent before it said", () => {
    const { view } = look(["b-new", "a"], { says: { 0: { ...broken, heartbeat: minutes(2) } } });
    expect(view?.reason).toBe("RollingOut");
  });

  test("is not judged by what was said before the node booted", () => {
    const { view } = look(["b", "b-again"], { says: { 1: { ...broken, heartbeat: minutes(2) } } });
    expect(view?.reason).toBe("RollingOut");
    const again = look(["b", "b-again"], { says: { 1: { ...broken, heartbeat: minutes(0) } } });
    expect(again.view?.reason).toBe("FailureThreshold");
  });

  test("reaches every node in the end, and takes no more than maxUnavailable at a time", () => {
    for (const maxUnavailable of [1, 3, 7]) {
      let fleet = Array<Kind>(20).fill("a");
      let rounds = 0;
      for (;;) {
        const { view, replaced = [] } = look(fleet, { rollout: { maxUnavailable } });
        if (view?.reason === "RolledOut") break;
        expect(replaced.length).toBeLessThanOrEqual(rounds === 0 ? 1 : maxUnavailable);
        expect(replaced.length).toBeGreaterThan(0);
        fleet = fleet.map((kind, at) => (replaced.includes(at) ? "b" : kind));
        rounds++;
      }
      expect(rounds).toBe(1 + Math.ceil(19 / maxUnavailable));
    }
  });
});
