import { serves } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type Condition,
  type RuntimeProfileStatus,
  runtimeClassName,
} from "@bulkhead/lib/api/runtime-profile.ts";
import { setCondition } from "@bulkhead/lib/kube/conditions.ts";
import { failedOn, isFresh, isHealthy, type NodeFacts, type ProfileFacts } from "./facts.ts";
import { overheadMemory } from "./overhead.ts";
import type { Rollout } from "./rollout.ts";
import type { TenancyState } from "./tenancy/plan.ts";
import { tenancyEnforced, tenancyFault, tenancyStatus } from "./tenancy/status.ts";

/** How the RuntimeClass stands after this reconcile. */
export type ClassState =
  | { class: "ours" }
  /** Another's of that name; `owner` when it is another profile's. */
  | { class: "foreign"; owner?: string }
  /** The API server would not take it. */
  | { class: "refused"; message: string }
  /** Taken away because the profile goes. */
  | { class: "removed" };

/** How far a deletion has come. */
export type Removal = { stage: "in-use" } | { stage: "nodes"; nodes: string[] } | { stage: "done" };

export type Situation = {
  facts: ProfileFacts;
  /** The revision that nodes shall have now. */
  target: string;
  /** The spec's revision, which is another once it was rolled back. */
  updateRevision: string;
  rolledBack?: NonNullable<RuntimeProfileStatus["rolledBack"]>;
  classState: ClassState;
  tenancyState: TenancyState;
  rollout?: Rollout;
  removal?: Removal;
};

/** How one selected node stands. */
export type NodeState = "ready" | "updating" | "waiting" | "failed" | "unreachable";

export type NodeVerdict = { name: string; state: NodeState; reason: string; message: string };

/** Where a node stands with the revision `target`. */
export const verdictOf = (node: NodeFacts, target: string, facts: ProfileFacts): NodeVerdict => {
  const { name, reported } = node;
  if (node.assigned && node.heartbeat !== undefined && !isFresh(node, facts)) {
    return {
      name,
      state: "unreachable",
      reason: "AgentSilent",
      // A time and no age: a status is not worth writing for a minute more.
      message: `the node agent was last heard at ${new Date(node.heartbeat).toISOString()}`,
    };
  }
  if (reported && node.assigned && failedOn(reported, node.assigned.revision)) {
    return { name, state: "failed", reason: reported.reason, message: reported.message };
  }
  if (reported?.canary?.passed === false && reported.revision === node.assigned?.revision) {
    return { name, state: "failed", reason: reported.reason, message: reported.message };
  }
  if (isHealthy(node, target, facts)) return { name, state: "ready", reason: "Ready", message: "" };
  if (node.drain?.revision === target && node.assigned?.revision !== target) {
    return {
      name,
      state: "waiting",
      reason: "Draining",
      message: "the profile's pods are evicted before the node gets the revision",
    };
  }
  if (node.assigned?.revision !== target) {
    return { name, state: "waiting", reason: "Waiting", message: "its turn has not come" };
  }
  return reported
    ? { name, state: "updating", reason: reported.reason || reported.phase, message: reported.message }
    : { name, state: "updating", reason: "NoReport", message: "the node agent has not reported yet" };
};

const few = (names: string[], most = 5): string =>
  names.length <= most
    ? names.join(", ")
    : `${names.slice(0, most).join(", ")} and ${names.length - most} more`;

const podsInUse = ({ facts }: Situation): string => {
  const { total, names } = facts.pods;
  const more = total > names.length ? ` and ${total - names.length} more` : "";
  return `${total} ${total === 1 ? "pod uses" : "pods use"} RuntimeClass "${runtimeClassName(facts.profile)}": ${names.join(", ")}${more}`;
};

type View = Situation & { verdicts: NodeVerdict[] };
type Finding = { reason: string; message: string };
/** One question; an answer is the reason why not, or why. */
type Check = (view: View) => Finding | undefined;

const of = (view: View, state: NodeState) => view.verdicts.filter((verdict) => verdict.state === state);
const told = (verdicts: NodeVerdict[]): string =>
  verdicts
    .map(({ name, reason, message }) => `${name}: ${reason}${message ? ` (${message})` : ""}`)
    .join("; ");

const specInvalid: Check = ({ facts }) =>
  facts.invalid === undefined ? undefined : { reason: "InvalidSpec", message: facts.invalid };

const classForeign: Check = ({ classState, facts }) => {
  if (classState.class !== "foreign") return undefined;
  const name = `RuntimeClass "${runtimeClassName(facts.profile)}"`;
  return {
    reason: "ForeignRuntimeClass",
    message: classState.owner
      ? `${name} belongs to RuntimeProfile "${classState.owner}"; give this profile another spec.runtimeClass.name`
      : `${name} exists and was not made by Bulkhead: it is left as it is; delete it or give the profile another spec.runtimeClass.name`,
  };
};

const classRefused: Check = ({ classState }) =>
  classState.class === "refused" ? { reason: "RuntimeClassRefused", message: classState.message } : undefined;

const classRemoved: Check = ({ classState }) =>
  classState.class === "removed"
    ? { reason: "Deleting", message: "no pod uses the class, and no new one may" }
    : undefined;

const deleting: Check = (view) => {
  const { removal } = view;
  if (!removal) return undefined;
  switch (removal.stage) {
    case "in-use":
      return { reason: "Deleting", message: `deletion waits: ${podsInUse(view)}` };
    case "nodes":
      return { reason: "Deleting", message: `deletion waits for nodes: ${few(removal.nodes)}` };
    case "done":
      return { reason: "Deleting", message: "nothing is left to remove" };
  }
};

const noNodes: Check = ({ verdicts }) =>
  verdicts.length === 0 ? { reason: "NoNodes", message: "no node matches spec.nodeSelector" } : undefined;

const nodesFailed: Check = (view) => {
  const failed = [...of(view, "failed"), ...of(view, "unreachable")];
  return failed.length > 0
    ? {
        reason: of(view, "failed").length > 0 ? "NodesFailed" : "AgentsSilent",
        message: `${failed.length} of ${view.verdicts.length} nodes: ${told(failed.slice(0, 3))}${failed.length > 3 ? "; …" : ""}`,
      }
    : undefined;
};

const nodesNotReady: Check = (view) => {
  const rest = view.verdicts.filter((verdict) => verdict.state !== "ready");
  return rest.length > 0
    ? {
        reason: "NodesNotReady",
        message: `${rest.length} of ${view.verdicts.length} nodes are not ready at revision ${view.target}: ${few(rest.map((v) => v.name))}`,
      }
    : undefined;
};

const rolloutHalted: Check = ({ rollout, facts }) =>
  rollout?.stage === "halted"
    ? {
        reason: "FailureThreshold",
        message: `the rollout stopped: ${rollout.failed.length} nodes failed and spec.rollout.failureThreshold is ${facts.profile.spec.rollout.failureThreshold}: ${few(rollout.failed)}`,
      }
    : undefined;

const rolledBack: Check = ({ rolledBack: is }) =>
  is && {
    reason: "RolledBack",
    message: `revision ${is.revision} failed (${is.message}): nodes have revision ${is.to} until spec changes`,
  };

const inUse: Check = (view) =>
  view.removal?.stage === "in-use" ? { reason: "InUse", message: podsInUse(view) } : undefined;

const removing: Check = ({ removal }) =>
  removal?.stage === "nodes"
    ? { reason: "RemovingFromNodes", message: `waiting for the agents of ${few(removal.nodes)}` }
    : undefined;

/** Of nodes that are ready, and must stay so before others follow. */
const soaked = (nodes: number, { facts }: Situation): string =>
  nodes > 0 ? `, ${nodes} ready for less than ${facts.profile.spec.rollout.minReadySeconds} s` : "";

const canary: Check = (view) => {
  const { rollout, target } = view;
  return rollout?.stage === "canary"
    ? {
        reason: "Canary",
        message: `revision ${target} is tried on ${few(rollout.nodes)}${soaked(rollout.soaking, view)}`,
      }
    : undefined;
};

const rollingOut: Check = (view) => {
  const { rollout, target, verdicts } = view;
  return rollout?.stage === "waves" && rollout.updating + rollout.soaking + rollout.waiting > 0
    ? {
        reason: "RollingOut",
        message: `revision ${target}: ${of(view, "ready").length} of ${verdicts.length} nodes ready${soaked(rollout.soaking, view)}, ${rollout.updating} updating, ${rollout.waiting} waiting`,
      }
    : undefined;
};

const paused: Check = ({ rollout, target }) =>
  rollout?.stage === "paused"
    ? {
        reason: "Paused",
        message: `${rollout.waiting} nodes wait for revision ${target}: spec.rollout.paused is true`,
      }
    : undefined;

/** The first of `checks` that finds something. */
const first = (checks: Check[], view: View): Finding | undefined => {
  for (const check of checks) {
    const finding = check(view);
    if (finding) return finding;
  }
  return undefined;
};

/**
 * The conditions of a RuntimeProfile, each by its checks in order: the first that finds something gives the reason.
 * Read from above, this is the documentation of what a condition means.
 */
const conditions = (view: View): Omit<Condition, "lastTransitionTime">[] => {
  const observedGeneration = view.facts.profile.metadata.generation;
  const generation = observedGeneration === undefined ? {} : { observedGeneration };
  const tenancy = tenancyEnforced(view);
  const decide = (
    type: string,
    found: "True" | "False",
    checks: Check[],
    otherwise: Finding,
  ): Omit<Condition, "lastTransitionTime"> => {
    const finding = first(checks, view);
    return {
      type,
      status: finding ? found : found === "True" ? "False" : "True",
      ...(finding ?? otherwise),
      ...generation,
    };
  };
  const idle = first([paused, rolloutHalted, rolledBack], view);
  return [
    decide("Accepted", "False", [specInvalid], { reason: "Accepted", message: "the spec is understood" }),
    decide("RuntimeClassReady", "False", [specInvalid, classForeign, classRefused, classRemoved], {
      reason: "RuntimeClassReady",
      message: `RuntimeClass "${runtimeClassName(view.facts.profile)}" is as the profile wants it`,
    }),
    decide(
      "Progressing",
      "True",
      [inUse, removing, canary, rollingOut],
      idle ?? { reason: "RolledOut", message: `revision ${view.target} was given to every node` },
    ),
    decide(
      "Ready",
      "False",
      [deleting, specInvalid, classForeign, classRefused, noNodes, nodesFailed, nodesNotReady],
      {
        reason: "AllNodesReady",
        message: `${view.verdicts.length} of ${view.verdicts.length} nodes ready at revision ${view.target}`,
      },
    ),
    decide(
      "Degraded",
      "True",
      [specInvalid, classForeign, classRefused, rolledBack, rolloutHalted, nodesFailed, tenancyFault],
      { reason: "AsExpected", message: "" },
    ),
    ...(tenancy ? [{ ...tenancy, ...generation }] : []),
  ];
};

/** Two significant digits: a status is not worth writing for the third. */
const rounded = (seconds: number): number => Number(seconds.toPrecision(2));

const quantile = (values: number[], share: number): number | undefined => {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
};

/** Start latencies of the fleet: the median of the nodes' medians, and the 99th percentile of their 99th. */
const startSeconds = (nodes: NodeFacts[]): RuntimeProfileStatus["startSeconds"] => {
  const reported = nodes.map((node) => node.reported?.startSeconds).filter((value) => value !== undefined);
  const p50 = quantile(
    reported.map((value) => value.p50),
    0.5,
  );
  const p99 = quantile(
    reported.map((value) => value.p99),
    0.99,
  );
  return p50 === undefined || p99 === undefined ? undefined : { p50: rounded(p50), p99: rounded(p99) };
};

export type Summary = { status: RuntimeProfileStatus; states: Record<NodeState, number> };

/** The status of a profile as the facts have it, and how many of its nodes are in which state. */
export const summarize = (situation: Situation): Summary => {
  const { facts, target, rollout } = situation;
  const { profile } = facts;
  const selected = facts.nodes.filter((node) => node.selected);
  const verdicts = selected.map((node) => verdictOf(node, target, facts));
  const view: View = { ...situation, verdicts };
  const failed = [...of(view, "failed"), ...of(view, "unreachable")];
  const ready = selected.filter((node) => serves(node.reported) && isFresh(node, facts));
  const before = profile.status ?? {};
  const latencies = startSeconds(selected);
  const tenancy = tenancyStatus(situation);
  const found = conditions(view);
  // Of what the profile does not ask for any more, nothing is said.
  const kept = (before.conditions ?? []).filter(
    ({ type }) => type !== "TenancyEnforced" || found.some((condition) => condition.type === type),
  );
  const overhead = overheadMemory(facts);
  const current = rollout?.stage === "done" && selected.length > 0 ? target : before.currentRevision;
  const states: Summary["states"] = {
    ready: of(view, "ready").length,
    updating: of(view, "updating").length,
    waiting: of(view, "waiting").length,
    failed: of(view, "failed").length,
    unreachable: of(view, "unreachable").length,
  };
  return {
    states,
    status: {
      ...(profile.metadata.generation === undefined
        ? {}
        : { observedGeneration: profile.metadata.generation }),
      conditions: found.reduce((all, condition) => setCondition(all, condition, facts.now), kept),
      nodes: {
        desired: selected.length,
        updated: selected.filter((node) => node.reported?.revision === target).length,
        ready: ready.length,
        failed: failed.length,
      },
      ...(current === undefined ? {} : { currentRevision: current }),
      updateRevision: situation.updateRevision,
      ...(situation.rolledBack ? { rolledBack: situation.rolledBack } : {}),
      ...(failed.length === 0
        ? {}
        : {
            failedNodes: failed.slice(0, 20).map(({ name, reason, message }) => ({ name, reason, message })),
          }),
      pods: facts.pods.total,
      ...(latencies ? { startSeconds: latencies } : {}),
      ...(tenancy ? { tenancy } : {}),
      ...(overhead ? { overheadMemory: overhead } : {}),
    },
  };
};
