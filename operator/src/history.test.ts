import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type RuntimeProfile,
  RuntimeProfileSpec,
  type RuntimeProfileStatus,
  revisionedPart,
} from "@bulkhead/lib/api/runtime-profile.ts";
import type { ControllerRevision } from "@bulkhead/lib/kube/resources.ts";
import { describe, expect, test } from "vitest";
import type { NodeFacts, ProfileFacts } from "./facts.ts";
import { effectiveRevision, planHistory } from "./history.ts";
import { desiredProfile } from "./revision.ts";

const profile = (
  spec: object,
  status: RuntimeProfileStatus = {},
  metadata: Partial<RuntimeProfile["metadata"]> = {},
): RuntimeProfile => ({
  apiVersion: "",
  kind: "RuntimeProfile",
  metadata: { name: "p", uid: "u", generation: 7, ...metadata },
  spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} }, ...spec }),
  status,
});
const revision = (spec: object, number: number): ControllerRevision => {
  const ownerReferences = [{ apiVersion: "", kind: "RuntimeProfile", name: "p", uid: "u" }];
  const data = revisionedPart(profile(spec).spec);
  return { metadata: { name: `p-${hashOf(spec)}`, ownerReferences }, revision: number, data };
};
const hashOf = (spec: object) => desiredProfile(profile(spec)).revision;
/** Specs that differ in what reaches the node. */
const every = (seconds: number) => ({ probe: { interval: `${seconds}s` } });

const node = (name: string, more: Partial<NodeFacts> = {}): NodeFacts => ({
  name,
  selected: true,
  observed: true,
  ...more,
});
const failing = (name: string, spec: object): NodeFacts =>
  node(name, {
    assigned: desiredProfile(profile(spec)),
    reported: {
      name: "p",
      phase: "RolledBack",
      revision: hashOf(every(1)),
      attemptedRevision: hashOf(spec),
      reason: "CanaryFailed",
      message: "",
    } satisfies ProfileStatus,
  });
const facts = (
  is: RuntimeProfile,
  revisions: ControllerRevision[] = [],
  nodes: NodeFacts[] = [],
): ProfileFacts => ({
  now: 0,
  staleAfterMs: 1,
  profile: is,
  nodes,
  pods: { total: 0, names: [] },
  tenancy: {
    elders: [],
    stronger: [],
    reserved: [],
    mutates: true,
    existing: [],
    claims: { namespaces: 0, conflicts: [], outside: [] },
  },
  revisions,
});

describe("The history", () => {
  const plan = (is: RuntimeProfile, revisions: ControllerRevision[], nodes: NodeFacts[] = []): string[] =>
    planHistory(facts(is, revisions, nodes), desiredProfile(is), "bulkhead-system").map((step) =>
      step.do === "renumber"
        ? `renumber ${step.name} ${step.number}`
        : `${step.do} ${step.revision.revision}`,
    );

  test("begins with the first spec, and has all that reaches a node", () => {
    const is = profile(every(1));
    const [step] = planHistory(facts(is), desiredProfile(is), "bulkhead-system");
    expect(step).toMatchObject({
      do: "record",
      revision: {
        metadata: {
          name: `p-${hashOf(every(1))}`,
          namespace: "bulkhead-system",
          labels: { "bulkhead.dev/profile": "p" },
          ownerReferences: [{ kind: "RuntimeProfile", name: "p", uid: "u" }],
        },
        revision: 1,
        data: {
          handler: is.spec.handler,
          artifact: is.spec.artifact,
          engine: "bulkhead",
          probe: is.spec.probe,
        },
      },
    });
  });
  test("has a restart with its time", () => {
    const restarted = { ...every(1), rollout: { restartedAt: "2026-01-01T00:00:00Z" } };
    const is = profile(restarted);
    const [step] = planHistory(facts(is, [revision(every(1), 1)]), desiredProfile(is), "bulkhead-system");
    expect(step).toMatchObject({
      do: "record",
      revision: { revision: 2, data: { restartedAt: "2026-01-01T00:00:00Z" } },
    });
  });
  test("is left alone while the spec is the newest of it", () => {
    expect(plan(profile(every(2)), [revision(every(1), 1), revision(every(2), 2)])).toEqual([]);
  });
  test("goes on with a new spec, and gives an old one that comes back a new number", () => {
    const revisions = [revision(every(1), 1), revision(every(2), 4)];
    expect(plan(profile(every(3)), revisions)).toEqual(["record 5"]);
    expect(plan(profile(every(1)), revisions)).toEqual([`renumber p-${hashOf(every(1))} 5`]);
  });
  test("is not written by a change of what no node sees", () => {
    expect(plan(profile({ ...every(1), rollout: { paused: true } }), [revision(every(1), 1)])).toEqual([]);
  });
  test("forgets the oldest beyond the limit, but none that is in use", () => {
    const revisions = [1, 2, 3, 4, 5].map((at) => revision(every(at), at));
    const limit = { rollout: { revisionHistoryLimit: 1 } };
    expect(plan(profile({ ...every(5), ...limit }), revisions)).toEqual(["forget 3", "forget 2", "forget 1"]);
    expect(
      plan(profile({ ...every(5), ...limit }, { currentRevision: hashOf(every(1)) }), revisions, [
        failing("a", every(2)),
      ]),
    ).toEqual(["forget 3"]);
  });
  test("of a profile that is gone is not that of another of its name", () => {
    const theirs = revision(every(1), 3);
    theirs.metadata.ownerReferences![0]!.uid = "gone";
    expect(plan(profile(every(1)), [theirs])).toEqual(["forget 3", "record 1"]);
  });
  test("ends with its profile", () => {
    expect(plan(profile(every(1), {}, { deletionTimestamp: "now" }), [])).toEqual([]);
  });
});

describe("Nodes shall have", () => {
  const rollback = { rollout: { onFailure: "Rollback" } };
  const good = revision(every(1), 1);
  const effective = (spec: object, status: RuntimeProfileStatus, nodes: NodeFacts[], revisions = [good]) => {
    const is = profile(spec, status);
    return effectiveRevision(facts(is, revisions, nodes), desiredProfile(is));
  };
  const bad = { ...every(2), ...rollback };
  const was = { currentRevision: hashOf(every(1)) };
  const two = [failing("a", every(2)), failing("b", every(2)), node("c")];

  test("the last good revision once too many failed the spec's, and the reason is kept", () => {
    expect(effective(bad, was, two)).toEqual({
      target: desiredProfile(profile(every(1))),
      rolledBack: {
        revision: hashOf(every(2)),
        to: hashOf(every(1)),
        generation: 7,
        message: "a: CanaryFailed, b: CanaryFailed",
      },
    });
  });
  const spec = { target: desiredProfile(profile(every(2))) };
  test.each([
    ["while fewer failed than the threshold", bad, was, [two[0]!, node("c")], [good]],
    ["where the policy is to halt", every(2), was, two, [good]],
    ["while paused", { ...every(2), rollout: { onFailure: "Rollback", paused: true } }, was, two, [good]],
    ["where none was good before", bad, {}, two, [good]],
    ["where the good one was forgotten", bad, was, two, []],
  ] as const)("the spec's revision %s", (_title, is, status, nodes, revisions) => {
    expect(effective(is, status, [...nodes], [...revisions])).toEqual(spec);
  });
  test("the last good revision on a single node, too: it alone is all there are", () => {
    expect(effective(bad, was, [two[0]!]).rolledBack?.to).toBe(hashOf(every(1)));
  });
  test("a restarted revision as every other: what is not the node's of it stays here", () => {
    const restarted = { rollout: { restartedAt: "2026-01-01T00:00:00Z" } };
    const then = { currentRevision: hashOf(restarted) };
    const { target } = effective(bad, then, two, [revision(restarted, 1)]);
    expect(target).toEqual(desiredProfile(profile(restarted)));
    expect(target).not.toHaveProperty("restartedAt");
  });
  test("what they were taken back to until the spec changes", () => {
    const rolledBack = { revision: hashOf(every(2)), to: hashOf(every(1)), generation: 7, message: "x" };
    expect(effective(bad, { ...was, rolledBack }, [node("c")])).toEqual({
      target: desiredProfile(profile(every(1))),
      rolledBack,
    });
    expect(effective(bad, { ...was, rolledBack: { ...rolledBack, generation: 6 } }, [node("c")])).toEqual(
      spec,
    );
    expect(effective({ ...every(3), ...rollback }, { ...was, rolledBack }, [node("c")])).toEqual({
      target: desiredProfile(profile(every(3))),
    });
  });
});
