import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition, RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { describe, expect, test } from "vitest";
import { stillThere, whatToDo } from "./remaining.ts";

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

test("Whoever waits for nodes is told what to do about one that is away", () => {
  expect(whatToDo([node(busy)])).toContain("delete its Node");
  // Pods hold it up, and are named already.
  expect(whatToDo([node(heard)])).toBe("");
});
