import { finalizer, labels } from "@bulkhead/lib/api/group.ts";
import { type DesiredProfile, serves } from "@bulkhead/lib/api/node-runtime.ts";
import { type Condition, type RuntimeProfileStatus, secondsOf } from "@bulkhead/lib/api/runtime-profile.ts";
import { transitions } from "@bulkhead/lib/kube/conditions.ts";
import type { RuntimeClass } from "@bulkhead/lib/kube/resources.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import type { Drain } from "./drain.ts";
import { isFresh, type ProfileFacts } from "./facts.ts";
import { effectiveRevision, lastGood } from "./history.ts";
import { declaredMemory } from "./overhead.ts";
import { type Rollout, rollOut } from "./rollout.ts";
import { desiredRuntimeClass, drift, ownerOf } from "./runtime-class.ts";
import { type ClassState, type NodeState, type Removal, type Summary, summarize } from "./status.ts";
import type { TenancyState } from "./tenancy/plan.ts";

/** What is to be done about the RuntimeClass. */
export type ClassStep =
  | { do: "nothing" }
  | { do: "create-class"; desired: RuntimeClass }
  | { do: "replace-class"; desired: RuntimeClass; existing: RuntimeClass; drift: string[] }
  /** The handler cannot be changed in place. */
  | { do: "recreate-class"; desired: RuntimeClass; existing: RuntimeClass }
  | { do: "delete-class"; existing: RuntimeClass };

export type ClassPlan = { step: ClassStep; state: ClassState };

/** The RuntimeClass: made, mended, left alone when it is another's, and gone with the profile. */
export const planClass = (facts: ProfileFacts): ClassPlan => {
  const { profile, runtimeClass: existing } = facts;
  const { name, deletionTimestamp } = profile.metadata;
  const owner = existing && ownerOf(existing);
  if (existing && owner !== name) {
    return { step: { do: "nothing" }, state: { class: "foreign", ...(owner ? { owner } : {}) } };
  }
  if (deletionTimestamp) {
    if (facts.pods.total > 0) return { step: { do: "nothing" }, state: { class: "ours" } };
    // Before the nodes give the handler back: from here on no new pod is admitted that would need it.
    return existing
      ? { step: { do: "delete-class", existing }, state: { class: "removed" } }
      : { step: { do: "nothing" }, state: { class: "removed" } };
  }
  if (facts.invalid !== undefined) return { step: { do: "nothing" }, state: { class: "ours" } };
  const desired = desiredRuntimeClass(profile, declaredMemory(facts));
  if (!existing) return { step: { do: "create-class", desired }, state: { class: "ours" } };
  const differs = drift(existing, desired);
  if (differs.includes("handler")) {
    return { step: { do: "recreate-class", desired, existing }, state: { class: "ours" } };
  }
  return differs.length > 0
    ? { step: { do: "replace-class", desired, existing, drift: differs }, state: { class: "ours" } }
    : { step: { do: "nothing" }, state: { class: "ours" } };
};

export type ProfilePlan = {
  /** What each node shall hold; null takes it away. Nodes not named keep what they have. */
  assignments: Map<string, DesiredProfile | null>;
  /** For which revision and since when nodes are drained. */
  drains: { revision: string; nodes: Rollout["drains"] };
  /** When it is worth planning again though nothing changes, in ms: a node has been ready for long enough. */
  againAt?: number;
  status: RuntimeProfileStatus;
  /** The status differs from what is there. */
  statusChanged: boolean;
  states: Record<NodeState, number>;
  /** Nodes that are ready for less than minReadySeconds, while others follow. */
  soaking: number;
  /** Nodes whose pods are asked away before they get the revision, while the drain's deadline lasts. */
  draining: number;
  /** Conditions that are worth an Event. */
  transitions: Condition[];
  /** Nodes that failed since the last status. */
  newlyFailed: NonNullable<RuntimeProfileStatus["failedNodes"]>;
  finalizer: "keep" | "remove";
};

/** The nodes that still hold something of a profile that goes. A node that vanished is not among the facts. */
const holders = (facts: ProfileFacts): string[] =>
  facts.nodes
    .filter((node) => node.assigned || node.reported || (node.heartbeat !== undefined && !node.observed))
    .map((node) => node.name);

const planRemoval = (facts: ProfileFacts): { removal: Removal; rollout: Rollout } => {
  const keep: Rollout = { stage: "done", assignments: new Map(), drains: new Map() };
  if (facts.pods.total > 0) return { removal: { stage: "in-use" }, rollout: keep };
  const nodes = holders(facts);
  return {
    removal: nodes.length > 0 ? { stage: "nodes", nodes } : { stage: "done" },
    rollout: { ...keep, assignments: new Map(facts.nodes.map((node) => [node.name, null])) },
  };
};

/** A node that joins while others are tried, wait or failed, gets what served everywhere before, until its turn comes. */
const meanwhile = (rollout: Rollout, facts: ProfileFacts): Rollout => {
  const good = lastGood(facts);
  if (good === undefined || rollout.stage === "waves" || rollout.stage === "done") return rollout;
  const assignments = new Map(rollout.assignments);
  for (const { name, selected, assigned } of facts.nodes)
    if (selected && assigned === undefined && !assignments.has(name)) assignments.set(name, good);
  return { ...rollout, assignments };
};

/** How many nodes are drained for the revision, and have not been for as long as they may. */
const countDraining = (
  { nodes, now, profile }: ProfileFacts,
  { drains, assignments }: Rollout,
  revision: string,
): number => {
  const { drain } = profile.spec.rollout;
  const lastsMs = drain === undefined ? 0 : secondsOf(drain.deadline) * 1000;
  return nodes.filter(({ name, assigned }) => {
    const since = drains.get(name);
    const has = assigned?.revision === revision || assignments.has(name);
    return since !== undefined && !has && now < since + lastsMs;
  }).length;
};

/** Everything that follows from the facts once the RuntimeClass is dealt with. */
export const planProfile = (
  facts: ProfileFacts,
  target: DesiredProfile,
  classState: ClassState,
  tenancyState: TenancyState,
): ProfilePlan => {
  const { profile } = facts;
  const hold: Rollout = { stage: "done", assignments: new Map(), drains: new Map() };
  const removal = profile.metadata.deletionTimestamp ? planRemoval(facts) : undefined;
  // Without a class of ours no pod can come: nodes keep what they have.
  const held =
    facts.invalid !== undefined || classState.class === "foreign" || classState.class === "refused";
  const { target: wanted, rolledBack } = effectiveRevision(facts, target);
  // Back to what every node had: it needs no canary, no time and no pod's going, but its turn as any other change.
  const { drain, ...rest } = profile.spec.rollout;
  const policy = rolledBack ? rest : profile.spec.rollout;
  const proven = profile.status?.currentRevision;
  const rollout =
    removal?.rollout ?? (held ? hold : meanwhile(rollOut(wanted, facts, policy, proven), facts));
  const summary: Summary = summarize({
    facts,
    target: wanted.revision,
    updateRevision: target.revision,
    ...(rolledBack ? { rolledBack } : {}),
    classState,
    tenancyState,
    ...(held ? {} : { rollout }),
    ...(removal ? { removal: removal.removal } : {}),
  });
  const before = profile.status ?? {};
  const known = new Set((before.failedNodes ?? []).map((node) => `${node.name} ${node.reason}`));
  return {
    assignments: rollout.assignments,
    drains: { revision: wanted.revision, nodes: rollout.drains },
    ...(rollout.soakedAt === undefined ? {} : { againAt: rollout.soakedAt }),
    status: summary.status,
    statusChanged: !sameJson(before, summary.status),
    states: summary.states,
    soaking: "soaking" in rollout ? rollout.soaking : 0,
    draining: countDraining(facts, rollout, wanted.revision),
    transitions: transitions(before.conditions ?? [], summary.status.conditions ?? []),
    newlyFailed: (summary.status.failedNodes ?? []).filter(
      (node) => !known.has(`${node.name} ${node.reason}`),
    ),
    finalizer: removal?.removal.stage === "done" ? "remove" : "keep",
  };
};

/** The finalizer comes before anything that deletion must undo. */
export const needsFinalizer = ({ profile }: ProfileFacts): boolean =>
  !profile.metadata.deletionTimestamp && !profile.metadata.finalizers?.includes(finalizer);

/**
 * What was decided for a profile on a node: this entry, none (null), or whatever is there now ("keep": the node is
 * selected, so it gets a NodeRuntime in which its agent can report, but its turn has not come).
 */
export type Decision = DesiredProfile | null | "keep";

/** What was decided for nodes, by node and profile. It outruns NodeRuntime.spec by the time a write takes. */
export type Decisions = Map<string, Map<string, Decision>>;

/** A revision's hash is of all that reaches a node: equal ones are the same. */
export const sameDecision = (one: Decision | undefined, other: Decision): boolean =>
  typeof one === "object" && typeof other === "object" ? one?.revision === other?.revision : one === other;

/** One node with all that profiles want of it. */
export type NodeRuntimeFacts = Pick<ProfileFacts, "now" | "staleAfterMs"> & {
  /** The Node's labels; undefined when the Node is gone. */
  nodeLabels?: Record<string, string>;
  /** NodeRuntime.spec.profiles; undefined when there is no NodeRuntime. */
  current?: DesiredProfile[];
  reported: Map<string, Parameters<typeof serves>[0]>;
  heartbeat?: number;
  decided: ReadonlyMap<string, Decision>;
  /** As decided, and as they stand in the NodeRuntime. */
  drains: ReadonlyMap<string, Drain>;
  annotated: ReadonlyMap<string, Drain>;
  /** The NodeRuntime says where its agent's Lease is. */
  told: boolean;
  /** Profiles that exist. */
  profiles: Set<string>;
  /** Those of them whose nodes begin with a taint. */
  startupTaints: Set<string>;
};

export type NodePlan = {
  /** The node is gone: so goes its NodeRuntime. */
  deleteRuntime: boolean;
  /** NodeRuntime.spec.profiles as it shall be, when that is not as it is. */
  profiles?: DesiredProfile[];
  /** Of profiles that exist; `drainsChanged` when the NodeRuntime does not say so yet. */
  drains: Map<string, Drain>;
  drainsChanged: boolean;
  /** The agent is still to be told of its Lease: an operator of before Leases wrote the NodeRuntime. */
  untold: boolean;
  /** Labels to set, or to remove with null. */
  labels: Record<string, string | null>;
  /** Startup taints that the node shall not have any more. */
  untaint: string[];
  /** When to look again: an agent that falls silent sends no event. */
  requeueAfterMs?: number;
};

const labelPrefix = labels.handlerReady("");

/** What NodeRuntime.spec and the Node's labels shall be. */
export const planNode = (facts: NodeRuntimeFacts): NodePlan => {
  const { nodeLabels, current, decided, profiles } = facts;
  const drains = new Map([...facts.drains].filter(([name]) => profiles.has(name)));
  if (nodeLabels === undefined) {
    const nothing = { labels: {}, untaint: [], drains: new Map(), drainsChanged: false, untold: false };
    return { deleteRuntime: current !== undefined, ...nothing };
  }

  const wanted = new Map<string, DesiredProfile>();
  for (const entry of current ?? []) {
    // What was not decided since this process began stays, unless its profile is gone.
    const decision = decided.get(entry.name) ?? (decided.has(entry.name) ? null : "keep");
    if (profiles.has(entry.name) && decision === "keep") wanted.set(entry.name, entry);
  }
  const selected = [...decided].filter(([name, decision]) => decision !== null && profiles.has(name));
  for (const [name, decision] of selected) {
    if (decision !== null && decision !== "keep") wanted.set(name, decision);
  }
  const sorted = [...wanted.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const changed = current === undefined ? selected.length > 0 : !sameJson(sorted, current);

  const fresh = isFresh(facts, facts);
  const ready = new Set(
    fresh
      ? [...facts.reported].filter(([name, is]) => wanted.has(name) && serves(is)).map(([name]) => name)
      : [],
  );
  // No new pod comes while those that are there are asked away.
  for (const name of drains.keys()) ready.delete(name);
  const change: NodePlan["labels"] = {};
  for (const name of ready) {
    if (nodeLabels[labels.handlerReady(name)] !== "ready") change[labels.handlerReady(name)] = "ready";
  }
  for (const label of Object.keys(nodeLabels)) {
    if (label.startsWith(labelPrefix) && !ready.has(label.slice(labelPrefix.length))) change[label] = null;
  }
  return {
    deleteRuntime: false,
    ...(changed ? { profiles: sorted } : {}),
    drains,
    drainsChanged:
      current !== undefined && !sameJson(Object.fromEntries(drains), Object.fromEntries(facts.annotated)),
    untold: current !== undefined && !facts.told,
    labels: change,
    untaint: [...ready]
      .filter((name) => facts.startupTaints.has(name))
      .map(labels.startupTaint)
      .sort(),
    ...(ready.size > 0 && facts.heartbeat !== undefined
      ? { requeueAfterMs: Math.max(1000, facts.heartbeat + facts.staleAfterMs - facts.now + 100) }
      : {}),
  };
};
