import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { type RuntimeProfile, RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import type { ControllerRevision } from "@bulkhead/lib/kube/resources.ts";
import { describe, expect, test } from "vitest";
import type { NodeFacts, ProfileFacts } from "./facts.ts";
import { type NodeRuntimeFacts, planClass, planNode, planProfile } from "./plan.ts";
import { desiredProfile } from "./revision.ts";
import { desiredRuntimeClass } from "./runtime-class.ts";
import type { ClassState } from "./status.ts";

const now = Date.parse("2026-01-01T00:00:00Z");
const staleAfterMs = 180_000;
const profile = (more: Partial<RuntimeProfile["metadata"]> = {}, spec: object = {}): RuntimeProfile => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name: "p", generation: 3, ...more },
  spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} }, ...spec }),
});
const target = desiredProfile(profile());
const deleted = { deletionTimestamp: "2026-01-01T00:00:00Z", finalizers: ["bulkhead.dev/in-use"] };

const reported = (more: Partial<ProfileStatus> = {}): ProfileStatus => ({
  name: "p",
  phase: "Ready",
  revision: target.revision,
  reason: "CanaryPassed",
  message: "",
  ...more,
});
const node = (name: string, more: Partial<NodeFacts> = {}): NodeFacts => ({
  name,
  selected: true,
  observed: true,
  heartbeat: now,
  assigned: target,
  reported: reported(),
  ...more,
});
const facts = (more: Partial<ProfileFacts> = {}): ProfileFacts => ({
  now,
  staleAfterMs,
  profile: profile(),
  nodes: [node("a"), node("b")],
  pods: { total: 0, names: [] },
  revisions: [],
  tenancy: {
    elders: [],
    stronger: [],
    reserved: [],
    mutates: true,
    existing: [],
    claims: { namespaces: 0, conflicts: [], outside: [] },
  },
  ...more,
});
const ours: ClassState = { class: "ours" };
const plan = (more: Partial<ProfileFacts> = {}, classState: ClassState = ours) =>
  planProfile(facts(more), target, classState, { tenancy: "none" });
const conditions = (is: ReturnType<typeof plan>): Record<string, string> =>
  Object.fromEntries((is.status.conditions ?? []).map((c) => [c.type, `${c.status} ${c.reason}`]));

describe("A node that joins while another revision", () => {
  const was = desiredProfile(profile({}, { probe: { interval: "1m" } }));
  const { name: _, revision, ...data } = was;
  const revisions: ControllerRevision[] = [
    {
      metadata: {
        name: `p-${revision}`,
        ownerReferences: [{ apiVersion: "", kind: "", name: "p", uid: "u" }],
      },
      revision: 1,
      data,
    },
  ];
  const serving = (name: string) => node(name, { assigned: was, reported: reported({ revision }) });
  const joins: NodeFacts = { name: "z", selected: true, observed: true, heartbeat: now };
  const trying = node("a", { reported: reported({ revision, phase: "Installing" }) });
  const failed = node("a", {
    reported: reported({ revision, phase: "RolledBack", attemptedRevision: target.revision }),
  });
  const given = (nodes: NodeFacts[], rollout: object = {}, current: string | undefined = revision) =>
    plan({
      profile: {
        ...profile({ uid: "u" }, { rollout }),
        status: current === undefined ? {} : { currentRevision: current },
      },
      revisions,
      nodes: [...nodes, joins],
    }).assignments.get("z");
  const table: [title: string, nodes: NodeFacts[], rollout: object][] = [
    ["is tried", [trying, serving("b")], {}],
    ["was stopped by its failures", [failed, serving("b")], { failureThreshold: 1 }],
    ["is paused", [serving("a")], { paused: true }],
  ];
  test.each(table)("%s gets the last good one", (_title, nodes, rollout) => {
    expect(given(nodes, rollout)).toEqual(was);
    // One whose first revision never was everywhere has none.
    expect(given(nodes, rollout, "")).toBeUndefined();
  });
  test("goes over the nodes in waves gets that at once", () => {
    expect(given([node("a"), serving("b")])).toEqual(target);
  });
});

test("Nodes are counted as draining until the drain's deadline, or until they have the revision", () => {
  const drain = (secondsAgo: number, over = false) => ({
    drain: { revision: target.revision, since: now - secondsAgo * 1000, over },
  });
  const was = { revision: "0000000000" };
  const serving = { assigned: { ...target, ...was }, reported: reported(was) };
  const installing = reported({ ...was, phase: "Installing" });
  const rollout = { canaryNodes: 0, maxUnavailable: 9, drain: { deadline: "2h" } };
  const draining = (...nodes: Partial<NodeFacts>[]) =>
    plan({
      profile: profile({}, { rollout }),
      nodes: [node("ready"), ...nodes.map((more, at) => node(`n${at}`, more))],
    }).draining;
  expect(draining()).toBe(0);
  expect(draining(serving)).toBe(1);
  expect(draining({ ...serving, ...drain(7199) }, { ...serving, ...drain(7200) })).toBe(1);
  // No pod is left, and the revision on its way.
  expect(draining({ ...serving, ...drain(60, true) })).toBe(0);
  expect(draining({ ...drain(60), reported: installing })).toBe(0);
});

describe("The RuntimeClass is", () => {
  const desired = desiredRuntimeClass(profile(), undefined);
  const table: [title: string, given: Partial<ProfileFacts>, step: string, state: ClassState][] = [
    ["created when there is none", {}, "create-class", ours],
    ["left when it is as wanted", { runtimeClass: desired }, "nothing", ours],
    ["mended when it drifted", { runtimeClass: { ...desired, scheduling: {} } }, "replace-class", ours],
    [
      "recreated when it is ours with another handler",
      { runtimeClass: { ...desired, handler: "x" } },
      "recreate-class",
      ours,
    ],
    [
      "left alone when it is nobody's",
      { runtimeClass: { metadata: { name: "p" }, handler: "p" } },
      "nothing",
      { class: "foreign" },
    ],
    [
      "left alone when it is another profile's",
      {
        runtimeClass: desiredRuntimeClass(profile({ name: "q" }, { runtimeClass: { name: "p" } }), undefined),
      },
      "nothing",
      { class: "foreign", owner: "q" },
    ],
    [
      "kept while pods use a profile that goes",
      { profile: profile(deleted), runtimeClass: desired, pods: { total: 1, names: ["x/y"] } },
      "nothing",
      ours,
    ],
    [
      "deleted once no pod uses a profile that goes",
      { profile: profile(deleted), runtimeClass: desired },
      "delete-class",
      { class: "removed" },
    ],
    [
      "never deleted when it is foreign",
      { profile: profile(deleted), runtimeClass: { metadata: { name: "p" }, handler: "p" } },
      "nothing",
      { class: "foreign" },
    ],
    ["left when the spec cannot be read", { invalid: "spec.handler: no" }, "nothing", ours],
  ];
  test.each(table)("%s", (_title, given, step, state) => {
    const is = planClass(facts(given));
    expect([is.step.do, is.state]).toEqual([step, state]);
  });
});

describe("A profile's conditions say", () => {
  const silent = now - staleAfterMs - 120_000;
  const failed = reported({
    phase: "Failed",
    revision: "",
    attemptedRevision: target.revision,
    reason: "NoKvm",
    message: "no /dev/kvm",
  });
  const table: [
    title: string,
    given: Partial<ProfileFacts>,
    state: ClassState,
    expected: Record<string, string>,
  ][] = [
    [
      "Ready when every node is",
      {},
      ours,
      {
        Ready: "True AllNodesReady",
        Progressing: "False RolledOut",
        Degraded: "False AsExpected",
        Accepted: "True Accepted",
        RuntimeClassReady: "True RuntimeClassReady",
      },
    ],
    [
      "NoNodes when none matches",
      { nodes: [] },
      ours,
      { Ready: "False NoNodes", Degraded: "False AsExpected" },
    ],
    [
      "InvalidSpec when the spec cannot be read",
      { invalid: "spec: no" },
      ours,
      { Accepted: "False InvalidSpec", Ready: "False InvalidSpec", Degraded: "True InvalidSpec" },
    ],
    [
      "ForeignRuntimeClass when the name is taken",
      {},
      { class: "foreign" },
      {
        RuntimeClassReady: "False ForeignRuntimeClass",
        Ready: "False ForeignRuntimeClass",
        Degraded: "True ForeignRuntimeClass",
      },
    ],
    [
      "RuntimeClassRefused when the API server will not have it",
      {},
      { class: "refused", message: "bad" },
      { RuntimeClassReady: "False RuntimeClassRefused", Degraded: "True RuntimeClassRefused" },
    ],
    [
      "Canary while the first node tries",
      {
        nodes: [
          node("a", { reported: reported({ phase: "Installing", revision: "" }) }),
          { name: "b", selected: true, observed: true, heartbeat: now },
        ],
      },
      ours,
      { Progressing: "True Canary", Ready: "False NodesNotReady" },
    ],
    [
      "RollingOut while the others follow",
      { nodes: [node("a"), node("b", { reported: reported({ phase: "Verifying", revision: "" }) })] },
      ours,
      { Progressing: "True RollingOut", Ready: "False NodesNotReady", Degraded: "False AsExpected" },
    ],
    [
      "NodesFailed when one does not work",
      { nodes: [node("a"), node("b", { reported: failed })] },
      ours,
      { Ready: "False NodesFailed", Degraded: "True NodesFailed" },
    ],
    [
      "NodesFailed when a canary fails later",
      {
        nodes: [
          node("a"),
          node("b", {
            reported: reported({
              canary: { passed: false, at: "", startSeconds: 0, kernel: "", assertions: [], failures: 3 },
            }),
          }),
        ],
      },
      ours,
      { Ready: "False NodesFailed", Degraded: "True NodesFailed" },
    ],
    [
      "AgentsSilent when an agent says nothing any more",
      { nodes: [node("a"), node("b", { heartbeat: silent })] },
      ours,
      { Ready: "False AgentsSilent", Degraded: "True AgentsSilent" },
    ],
    [
      "InUse while pods hold a profile that goes",
      { profile: profile(deleted), pods: { total: 1, names: ["x/y"] } },
      ours,
      { Ready: "False Deleting", Progressing: "True InUse" },
    ],
    [
      "RemovingFromNodes while nodes give it back",
      { profile: profile(deleted) },
      { class: "removed" },
      { Progressing: "True RemovingFromNodes", RuntimeClassReady: "False Deleting" },
    ],
  ];
  test.each(table)("%s", (_title, given, state, expected) => {
    expect(conditions(plan(given, state))).toMatchObject(expected);
  });

  test("which node failed and why, of at most twenty", () => {
    const nodes = Array.from({ length: 30 }, (_, at) => node(`n${at + 10}`, { reported: failed }));
    const is = plan({ nodes });
    expect(is.status.failedNodes).toHaveLength(20);
    expect(is.status.failedNodes?.[0]).toEqual({ name: "n10", reason: "NoKvm", message: "no /dev/kvm" });
    expect(is.status.nodes).toEqual({ desired: 30, updated: 0, ready: 0, failed: 30 });
    const degraded = is.status.conditions?.find((c) => c.type === "Degraded");
    expect(degraded?.message).toContain("30 of 30 nodes: n10: NoKvm (no /dev/kvm); n11");
    expect(is.newlyFailed).toHaveLength(20);
  });
});

describe("A status", () => {
  test("is not written again when nothing changed", () => {
    const first = plan();
    expect(first.statusChanged).toBe(true);
    const again = plan({ profile: { ...profile(), status: first.status }, now: now + 60_000 });
    expect(again.statusChanged).toBe(false);
    expect(again.transitions).toEqual([]);
  });
  test("is not written for each minute that an agent is silent", () => {
    const nodes = [node("a"), node("b", { heartbeat: now - 2 * staleAfterMs })];
    const { status } = plan({ nodes });
    const at = new Date(now - 2 * staleAfterMs).toISOString();
    expect(status.failedNodes?.[0]?.message).toBe(`the node agent was last heard at ${at}`);
    const later = now + 3_600_000;
    const again = [node("a", { heartbeat: later }), nodes[1]!];
    expect(plan({ profile: { ...profile(), status }, now: later, nodes: again }).statusChanged).toBe(false);
  });
  test("is not written for a third digit of latency", () => {
    const of = (p50: number) =>
      plan({ nodes: [node("a", { reported: reported({ startSeconds: { p50, p99: 1 } }) })] });
    expect(of(0.2011).status).toEqual(of(0.2049).status);
  });
  test("tells what a pod costs as declared and as the dearest canary took it, and is steady about it", () => {
    const canary = (overheadBytes: number) => ({
      ...{ passed: true, at: "", startSeconds: 0, kernel: "", assertions: [], failures: 0 },
      overheadBytes,
    });
    const of = (mebibytes: number[], before = {}) =>
      plan({
        profile: { ...profile(), status: before },
        nodes: mebibytes.map((each, i) =>
          node(`n${i}`, { reported: reported({ canary: canary(each * 2 ** 20) }) }),
        ),
      }).status;
    const first = of([50, 61.2]);
    expect(first.overheadMemory).toEqual({ declared: "0", measured: "62Mi" });
    expect(of([50, 66], first).overheadMemory).toEqual(first.overheadMemory);
    expect(of([50, 80], first).overheadMemory?.measured).toBe("80Mi");
    expect(of([0]).overheadMemory).toBeUndefined();
  });
  test("names the revision as current only when every node has it", () => {
    expect(plan().status.currentRevision).toBe(target.revision);
    expect(
      plan({ nodes: [node("a"), node("b", { reported: reported({ revision: "" }) })] }).status
        .currentRevision,
    ).toBeUndefined();
  });
});

describe("Deletion", () => {
  const going = { profile: profile(deleted) };
  test("takes nothing from nodes while pods use the class", () => {
    const is = plan({ ...going, pods: { total: 1, names: ["x/y"] } });
    expect([is.assignments.size, is.finalizer]).toEqual([0, "keep"]);
  });
  test("then takes the profile from every node and waits", () => {
    const is = plan(going, { class: "removed" });
    expect([[...is.assignments], is.finalizer]).toEqual([
      [
        ["a", null],
        ["b", null],
      ],
      "keep",
    ]);
  });
  test("waits for an agent that has not seen the change yet, though it reported nothing of the profile", () => {
    const { assigned: _, reported: __, ...blank } = node("a");
    expect(plan({ ...going, nodes: [{ ...blank, observed: false }] }).finalizer).toBe("keep");
    expect(plan({ ...going, nodes: [{ ...blank, observed: true }] }).finalizer).toBe("remove");
  });
  test("ends when no node holds anything", () => {
    expect(plan({ ...going, nodes: [] }, { class: "removed" }).finalizer).toBe("remove");
  });
});

describe("A node", () => {
  const label = "handler.bulkhead.dev/p";
  const base: NodeRuntimeFacts = {
    now,
    staleAfterMs,
    nodeLabels: {},
    current: [target],
    reported: new Map([["p", reported()]]),
    heartbeat: now,
    decided: new Map([["p", target]]),
    drains: new Map(),
    annotated: new Map(),
    told: true,
    profiles: new Set(["p"]),
    startupTaints: new Set(),
  };
  const drain = { revision: target.revision, since: "2026-01-01T00:00:00.000Z" };
  const { nodeLabels: _, ...gone } = base;
  const { current: __, ...unwritten } = base;
  const table: [title: string, facts: NodeRuntimeFacts, expected: object][] = [
    ["gets its label when the canary passed", base, { labels: { [label]: "ready" } }],
    [
      "loses it while its pods are asked away, and says so in its NodeRuntime",
      { ...base, nodeLabels: { [label]: "ready" }, drains: new Map([["p", drain]]) },
      { labels: { [label]: null }, drains: new Map([["p", drain]]), drainsChanged: true },
    ],
    [
      "says a drain once, and no more when it is over or its profile is gone",
      { ...base, drains: new Map([["gone", drain]]), annotated: new Map([["p", drain]]) },
      { labels: { [label]: "ready" }, drains: new Map(), drainsChanged: true },
    ],
    ["is told of its Lease by an operator that reads it", { ...base, told: false }, { untold: true }],
    ["is told with its first profiles", { ...unwritten, told: false }, { profiles: [target], untold: false }],
    ["keeps its label unwritten", { ...base, nodeLabels: { [label]: "ready" } }, { labels: {} }],
    [
      "loses it when the handler fails",
      {
        ...base,
        nodeLabels: { [label]: "ready" },
        reported: new Map([["p", reported({ phase: "Failed" })]]),
      },
      { labels: { [label]: null } },
    ],
    [
      "loses it when the agent falls silent",
      { ...base, nodeLabels: { [label]: "ready" }, heartbeat: now - staleAfterMs },
      { labels: { [label]: null } },
    ],
    [
      "keeps it while another revision is being installed",
      {
        ...base,
        nodeLabels: { [label]: "ready" },
        reported: new Map([["p", reported({ phase: "Installing", revision: "0000000000" })]]),
      },
      { labels: {} },
    ],
    [
      "keeps it after a rollback, as the earlier revision serves",
      {
        ...base,
        nodeLabels: { [label]: "ready" },
        reported: new Map([
          [
            "p",
            reported({ phase: "RolledBack", revision: "0000000000", attemptedRevision: target.revision }),
          ],
        ]),
      },
      { labels: {} },
    ],
    [
      "loses labels of profiles that are gone, and no others",
      { ...base, nodeLabels: { [label]: "ready", "handler.bulkhead.dev/q": "ready", other: "x" } },
      { labels: { "handler.bulkhead.dev/q": null } },
    ],
    [
      "loses its startup taint once the handler serves",
      { ...base, startupTaints: new Set(["p", "q"]) },
      { untaint: [label] },
    ],
    [
      "keeps it before that",
      { ...base, startupTaints: new Set(["p"]), reported: new Map([["p", reported({ revision: "" })]]) },
      { untaint: [] },
    ],
    ["gets a NodeRuntime when it is selected", unwritten, { profiles: [target] }],
    [
      "gets an empty NodeRuntime before its turn",
      { ...unwritten, decided: new Map([["p", "keep"]]) },
      { profiles: [] },
    ],
    ["gets none when nothing selects it", { ...unwritten, decided: new Map() }, { profiles: undefined }],
    ["keeps what was not decided yet", { ...base, decided: new Map() }, { profiles: undefined }],
    ["loses what is taken away", { ...base, decided: new Map([["p", null]]) }, { profiles: [] }],
    ["loses entries of profiles that are gone", { ...base, profiles: new Set() }, { profiles: [] }],
    ["that vanished takes its NodeRuntime along", gone, { deleteRuntime: true }],
  ];
  test.each(table)("%s", (_title, given, expected) => {
    expect({ profiles: undefined, ...planNode(given) }).toMatchObject(expected);
  });
  test("is looked at again when its agent could have fallen silent", () => {
    expect(planNode(base).requeueAfterMs).toBeGreaterThanOrEqual(staleAfterMs);
  });
});
