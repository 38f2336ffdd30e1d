import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition, RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Pod } from "@bulkhead/lib/kube/resources.ts";
import { describe, expect, test } from "vitest";
import { holds, markedAlready, stillThere, whatHolds } from "./remaining.ts";

const condition = (type: string, status: "True" | "False", message = ""): Condition => ({
  ...{ type, status, reason: "R", message },
  lastTransitionTime: "2026-01-01T00:00:00Z",
});
const profile = (...conditions: Condition[]) =>
  ({ metadata: { name: "p" }, status: { conditions } }) as object as RuntimeProfile;
const node = (status: NodeRuntime["status"]): NodeRuntime => ({
  apiVersion: "",
  kind: "NodeRuntime",
  metadata: { name: "n", generation: 2 },
  spec: { profiles: [] },
  ...(status ? { status } : {}),
});
const heard = { heartbeat: "2026-01-01T00:00:00Z", observedGeneration: 2 };
const busy = {
  ...heard,
  profiles: [
    { name: "p", phase: "Removing", revision: "", reason: "PodsRunning", message: "1 pod" } as const,
  ],
};

describe("Bulkhead is not gone while", () => {
  test.each<[string, RuntimeProfile[], NodeRuntime[], string]>([
    [
      "a profile is there",
      [profile(condition("Ready", "False", "1 pod uses it"))],
      [],
      'profile "p" is still there: 1 pod uses it',
    ],
    [
      "a node has not seen what it shall be",
      [],
      [node({ ...heard, observedGeneration: 1 })],
      'node "n" has not yet seen what it shall be',
    ],
    ["a node holds a profile", [], [node(busy)], 'node "n" still has p (Removing: 1 pod)'],
    [
      "a node cannot be left",
      [],
      [node({ ...heard, conditions: [condition("Leaving", "True", "the kubelet refused")] })],
      'node "n": the kubelet refused',
    ],
    [
      "a node has files of ours",
      [],
      [node({ ...heard, conditions: [condition("Serving", "True")] })],
      'node "n" is not yet what it was',
    ],
  ])("%s", (_title, profiles, nodes, words) => {
    expect(stillThere(profiles, nodes)).toEqual([words]);
  });
  test("and is, when nothing of that is so: a node that never spoke was never touched", () => {
    expect(stillThere([], [node(heard), node(undefined)])).toEqual([]);
  });
});

const named = (name: string, more: object = {}) =>
  ({ metadata: { name }, spec: { runtimeClass: {} }, ...more }) as object as RuntimeProfile;
const pod = (name: string, runtimeClassName: string, more: object = {}): Pod => ({
  metadata: { name, namespace: "ns" },
  spec: { runtimeClassName },
  ...more,
});

describe("Before anything is deleted,", () => {
  const profiles = [named("a"), named("b", { spec: { runtimeClass: { name: "other" } } })];
  const using = (...pods: Pod[]) => whatHolds(profiles, pods.filter(holds(profiles)));

  test("pods that use a profile's class are named, by class", () => {
    expect(using(pod("two", "a"), pod("one", "a"), pod("x", "other"), pod("y", "b"), pod("z", ""))).toEqual([
      '2 pods use RuntimeClass "a": ns/one, ns/two',
      '1 pod uses RuntimeClass "other": ns/x',
    ]);
    const many = Array.from({ length: 12 }, (_, at) => pod(`p-${at}`, "a"));
    expect(using(...many)[0]).toMatch(/^12 pods .* and 2 more$/);
  });

  test("what ended, or is on its way out, holds nothing up, nor do pods of a class that is another's", () => {
    const going = { metadata: { name: "going", deletionTimestamp: "2026-01-01T00:00:00Z" } };
    expect(using(pod("ended", "a", { status: { phase: "Succeeded" } }), pod("", "a", going))).toEqual([]);
    const condition = { type: "RuntimeClassReady", status: "False", reason: "ForeignRuntimeClass" };
    expect(holds([named("a", { status: { conditions: [condition] } })])(pod("one", "a"))).toBe(false);
  });

  test("a node that is away is named once, whichever profiles it has", () => {
    const failedNodes = [
      { name: "n1", reason: "AgentSilent", message: "last heard long ago" },
      { name: "n2", reason: "CanaryFailed", message: "" },
    ];
    const both = [named("a", { status: { failedNodes } }), named("b", { status: { failedNodes } })];
    expect(whatHolds(both, [])).toEqual(['node "n1" is away: last heard long ago']);
  });

  test("what an earlier try marked is told", () => {
    expect(markedAlready(profiles)).toBe("");
    const marked = { metadata: { name: "gone", deletionTimestamp: "2026-01-01T00:00:00Z" } };
    expect(markedAlready([...profiles, named("gone", marked)])).toMatch(
      /nobody can take back: gone; each goes/,
    );
  });
});
