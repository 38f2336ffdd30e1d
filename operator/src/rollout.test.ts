import type { DesiredProfile, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { NodeFacts } from "./facts.ts";
import { desiredProfile, revisionOf } from "./revision.ts";
import { maxUnavailableOf, rollOut } from "./rollout.ts";

const spec = RuntimeProfileSpec.parse({ handler: { gvisor: {} } });
const target: DesiredProfile = desiredProfile({ metadata: { name: "p" }, spec });
const old: DesiredProfile = { ...target, revision: "0000000000" };
const now = 1_000_000;
const staleAfterMs = 60_000;

const says = (phase: ProfileStatus["phase"], revision: string, attempted?: string): ProfileStatus => ({
  name: "p",
  phase,
  revision,
  reason: "",
  message: "",
  ...(attempted ? { attemptedRevision: attempted } : {}),
});

type Kind =
  | "booted"
  | "new"
  | "silent"
  | "old"
  | "pending"
  | "ready"
  | "soaking"
  | "failed"
  | "rolled-back"
  | "unselected";
const kinds: Record<Kind, Omit<NodeFacts, "name">> = {
  new: { selected: true, observed: true, heartbeat: now },
  silent: { selected: true, observed: true, heartbeat: now - 10 * staleAfterMs },
  old: {
    selected: true,
    observed: true,
    heartbeat: now,
    assigned: old,
    reported: says("Ready", old.revision),
  },
  pending: {
    selected: true,
    observed: true,
    heartbeat: now,
    assigned: target,
    reported: says("Installing", old.revision),
  },
  booted: {
    selected: true,
    observed: true,
    heartbeat: now,
    assigned: target,
    reported: says("Pending", "", target.revision),
  },
  ready: {
    selected: true,
    observed: true,
    heartbeat: now,
    readySince: now - 900_000,
    assigned: target,
    reported: says("Ready", target.revision),
  },
  soaking: {
    selected: true,
    observed: true,
    heartbeat: now,
    readySince: now - 20_000,
    assigned: target,
    reported: says("Ready", target.revision),
  },
  failed: {
    selected: true,
    observed: true,
    heartbeat: now,
    assigned: target,
    reported: says("Failed", "", target.revision),
  },
  "rolled-back": {
    selected: true,
    observed: true,
    heartbeat: now,
    assigned: target,
    reported: says("RolledBack", old.revision, target.revision),
  },
  unselected: {
    selected: false,
    observed: true,
    heartbeat: now,
    assigned: old,
    reported: says("Ready", old.revision),
  },
};
const nodesOf = (...list: Kind[]): NodeFacts[] =>
  list.map((kind, at) => ({ name: `n${String(at).padStart(3, "0")}`, ...kinds[kind] }));

const roll = (list: Kind[], policy: Partial<RuntimeProfileSpec["rollout"]> = {}, current?: string) => {
  const result = rollOut(
    target,
    { now, staleAfterMs, nodes: nodesOf(...list) },
    { ...spec.rollout, ...policy },
    current,
  );
  return {
    stage: result.stage,
    given: [...result.assignments].filter(([, entry]) => entry).map(([name]) => name),
    taken: [...result.assignments].filter(([, entry]) => entry === null).map(([name]) => name),
  };
};

describe("A rollout", () => {
  const table: [
    title: string,
    nodes: Kind[],
    policy: Partial<RuntimeProfileSpec["rollout"]>,
    expected: Partial<ReturnType<typeof roll>>,
  ][] = [
    ["gives one canary the revision first", ["new", "new", "new"], {}, { stage: "canary", given: ["n000"] }],
    ["waits for its canary", ["pending", "old", "old"], {}, { stage: "canary", given: [] }],
    [
      "prefers as canary a node whose agent answers",
      ["silent", "new"],
      {},
      { stage: "canary", given: ["n001"] },
    ],
    [
      "has as many canaries as the policy says",
      ["old", "old", "old"],
      { canaryNodes: 2 },
      { given: ["n000", "n001"] },
    ],
    [
      "goes without canaries when the policy says so",
      ["new", "new"],
      { canaryNodes: 0 },
      { given: ["n000", "n001"] },
    ],
    [
      "gives all at once where nothing serves yet: nothing becomes unavailable",
      ["ready", "new", "new", "new", "new"],
      {},
      { stage: "waves", given: ["n001", "n002", "n003", "n004"] },
    ],
    [
      "takes only maxUnavailable at a time where an earlier revision serves",
      ["ready", "old", "old", "old", "old", "old", "old", "old"],
      {},
      { stage: "waves", given: ["n001", "n002"] },
    ],
    [
      "counts those under way against maxUnavailable",
      ["ready", "pending", "old", "old", "old", "old", "old", "old"],
      {},
      { given: ["n002"] },
    ],
    [
      "counts a node that booted, and serves nothing until its canary passed, against maxUnavailable",
      ["ready", "booted", "old", "old", "old", "old", "old", "old", "new"],
      {},
      { given: ["n008", "n002"] },
    ],
    [
      "tries another canary after the first failure",
      ["failed", "old", "old"],
      {},
      { stage: "canary", given: ["n001"] },
    ],
    [
      "stops at the failure threshold",
      ["failed", "rolled-back", "old", "old"],
      {},
      { stage: "halted", given: [] },
    ],
    ["stands still while paused", ["ready", "old", "new"], { paused: true }, { stage: "paused", given: [] }],
    ["takes the profile from nodes that match no more", ["ready", "unselected"], {}, { taken: ["n001"] }],
    [
      "waits until its canary has been ready for minReadySeconds",
      ["soaking", "old", "new"],
      { minReadySeconds: 60 },
      { stage: "canary", given: [] },
    ],
    [
      "goes on when its canary has been ready for minReadySeconds",
      ["soaking", "old", "old"],
      { minReadySeconds: 20 },
      { stage: "waves", given: ["n001"] },
    ],
    [
      "begins no wave before the one under way has been ready for minReadySeconds",
      ["ready", "soaking", "old", "old", "old", "old", "old", "old"],
      { minReadySeconds: 60 },
      { stage: "waves", given: ["n002"] },
    ],
    [
      "tries another canary where one fails within minReadySeconds",
      ["failed", "old", "old"],
      { minReadySeconds: 60 },
      { stage: "canary", given: ["n001"] },
    ],
    [
      "is not done before the last node has been ready for minReadySeconds",
      ["ready", "soaking"],
      { minReadySeconds: 60 },
      { stage: "waves", given: [] },
    ],
    ["is done when every node is ready", ["ready", "ready"], {}, { stage: "done", given: [] }],
    ["is done on no nodes", [], {}, { stage: "done" }],
  ];
  test.each(table)("%s", (_title, nodes, policy, expected) => {
    expect(roll(nodes, policy)).toMatchObject(expected);
  });

  test("gives a node that joins a proven revision at once, whatever failed elsewhere", () => {
    expect(roll(["failed", "failed", "new", "ready"], {}, target.revision).given).toEqual(["n002"]);
  });
  test("gives a node that joins a proven revision while it is paused", () => {
    expect(roll(["ready", "old", "new"], { paused: true }, target.revision)).toMatchObject({
      stage: "paused",
      given: ["n002"],
    });
  });
  test("goes back to a proven revision without canaries, and takes no more than maxUnavailable from service", () => {
    const undone: Kind[] = ["old", "old", "old", "old", "old", "new"];
    expect(roll(undone, { maxUnavailable: 2 }, target.revision)).toMatchObject({
      stage: "waves",
      given: ["n005", "n000", "n001"],
    });
    expect(roll(["failed", "rolled-back", ...undone], {}, target.revision)).toMatchObject({
      stage: "halted",
      given: ["n007"],
    });
  });

  test("tells when a node has been ready for minReadySeconds, and asks it of none where every node had the revision", () => {
    const policy = { ...spec.rollout, minReadySeconds: 60 };
    const nodes = nodesOf("soaking", "ready");
    const facts = { now, staleAfterMs, nodes };
    expect(rollOut(target, facts, policy, undefined)).toMatchObject({
      ...{ stage: "waves", updating: 0, soaking: 1, waiting: 0 },
      soakedAt: now + 40_000,
    });
    expect(rollOut(target, facts, policy, target.revision)).toEqual({
      ...{ stage: "done", assignments: new Map(), drains: new Map() },
    });
    // An operator that just began has not seen for how long.
    const [, { readySince: _, ...unseen }] = nodes as [NodeFacts, NodeFacts];
    expect(rollOut(target, { ...facts, nodes: [unseen] }, policy, undefined)).toMatchObject({
      ...{ soaking: 1, soakedAt: now + 60_000 },
    });
  });

  describe("that drains", () => {
    const drain = { drain: { deadline: "15m" } };
    const begun = (over: boolean) => ({ revision: target.revision, since: now - 1000, over });
    const rolled = (nodes: NodeFacts[], more: Partial<RuntimeProfileSpec["rollout"]> = {}) => {
      const policy = { ...spec.rollout, ...drain, ...more };
      const { assignments, drains } = rollOut(target, { now, staleAfterMs, nodes }, policy, undefined);
      return { given: [...assignments.keys()], drains: [...drains] };
    };
    const [canary, ...rest] = nodesOf("ready", "old", "old", "old");

    test("asks the pods of a node away before it gets the revision, canaries too", () => {
      expect(rolled(rest)).toEqual({ given: [], drains: [["n001", now]] });
      expect(rolled([canary!, ...rest])).toEqual({ given: [], drains: [["n001", now]] });
    });
    test("goes on with the node that it began with, and takes no more than maxUnavailable", () => {
      const second = [canary!, rest[0]!, { ...rest[1]!, drain: begun(false) }, rest[2]!];
      expect(rolled(second)).toEqual({ given: [], drains: [["n002", now - 1000]] });
    });
    test("gives the revision when no pod is left, and lets none come until it serves", () => {
      const over = [canary!, { ...rest[0]!, drain: begun(true) }, rest[1]!];
      expect(rolled(over)).toEqual({ given: ["n001"], drains: [["n001", now - 1000]] });
      const [pending] = nodesOf("pending");
      expect(rolled([canary!, { ...pending!, name: "n001", drain: begun(true) }, rest[1]!])).toEqual({
        given: [],
        drains: [["n001", now - 1000]],
      });
    });
    test("needs none where the revision serves already, as after one that was undone", () => {
      const kept = { ...rest[0]!, reported: says("RolledBack", target.revision, old.revision) };
      expect(rolled([canary!, kept])).toEqual({ given: ["n001"], drains: [] });
    });
    test("needs none where nothing serves, and ends with the pause, the halt and another revision", () => {
      expect(rolled([canary!, ...nodesOf("ready", "new").slice(1)])).toEqual({ given: ["n001"], drains: [] });
      const draining = [canary!, { ...rest[0]!, drain: begun(false) }];
      expect(rolled(draining, { paused: true }).drains).toEqual([]);
      const other = { ...begun(true), revision: "1111111111" };
      expect(rolled([canary!, { ...rest[0]!, drain: other }])).toEqual({
        given: [],
        drains: [["n001", now]],
      });
    });
  });

  test("of any fleet never takes more from service than maxUnavailable, and ends", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom<Kind>("new", "old"), { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 0, max: 3 }),
        fc.boolean(),
        (list, maxUnavailable, canaryNodes, proven) => {
          const fleet = [...list];
          for (let round = 0; round <= list.length + 1; round++) {
            const { stage, given } = roll(
              fleet,
              { maxUnavailable, canaryNodes },
              proven ? target.revision : undefined,
            );
            if (stage === "done") break;
            const chosen = given.map((name) => Number(name.slice(1)));
            const lost = chosen.filter((at) => fleet[at] === "old").length;
            expect(lost).toBeLessThanOrEqual(stage === "canary" ? Math.max(canaryNodes, 1) : maxUnavailable);
            for (const at of chosen) fleet[at] = "ready";
          }
          expect(new Set(fleet)).toEqual(new Set(["ready"]));
        },
      ),
    );
  });
});

test.each([
  ["25%", 8, 2],
  ["25%", 3, 1],
  ["0%", 100, 1],
  [7, 3, 7],
] as const)("maxUnavailable of %s is of %i nodes %i", (value, total, nodes) => {
  expect(maxUnavailableOf(value, total)).toBe(nodes);
});

describe("A revision", () => {
  const of = (more: object) => revisionOf(RuntimeProfileSpec.parse({ handler: { gvisor: {} }, ...more }));
  test("is ten hex digits", () => {
    expect(of({})).toMatch(/^[0-9a-f]{10}$/);
  });
  test("is the same however the spec is written", () => {
    expect(of({ engine: "bulkhead", probe: { assertIsolation: true, interval: "60s" } })).toBe(of({}));
  });
  test("changes with what reaches the node, and with nothing else", () => {
    expect(of({ handler: { gvisor: { platform: "kvm" } } })).not.toBe(of({}));
    expect(of({ probe: { interval: "5m" } })).not.toBe(of({}));
    expect(of({ rollout: { restartedAt: "2026-01-01T00:00:00Z" } })).not.toBe(of({}));
    expect(of({ nodeSelector: { a: "b" }, rollout: { paused: true }, runtimeClass: { name: "x" } })).toBe(
      of({}),
    );
  });
});
