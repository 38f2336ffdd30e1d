import { fieldManager, finalizer, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition, RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import type { EventRecorder } from "@bulkhead/lib/kube/events.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import {
  controllerRevisions,
  nodeRuntimes,
  nodes,
  runtimeClasses,
  runtimeProfiles,
  taintedNodes,
} from "@bulkhead/lib/kube/resources.ts";
import type { Clock } from "@bulkhead/lib/std/clock.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { annotate, span, traceparent } from "@bulkhead/lib/tracing/span.ts";
import type { Logger } from "pino";
import { askAway } from "./ask-away.ts";
import { type DrainState, drainKey } from "./drain.ts";
import type { ProfileFacts } from "./facts.ts";
import { gatherNode, gatherProfile, policiesOf, type Stores, type Surroundings } from "./gather.ts";
import { forgetHistory, type HistoryStep, planHistory } from "./history.ts";
import type { Latest } from "./latest.ts";
import type { ProfileMetrics } from "./metrics.ts";
import type { NodeIndex } from "./node-index.ts";
import type { Pace } from "./pace.ts";
import {
  type ClassPlan,
  type ClassStep,
  type Decisions,
  needsFinalizer,
  planClass,
  planNode,
  planProfile,
  sameDecision,
} from "./plan.ts";
import { desiredProfile } from "./revision.ts";
import { managedBy } from "./runtime-class.ts";
import { slimNode } from "./slim.ts";
import type { ClassState } from "./status.ts";
import { applyTenancy } from "./tenancy/apply.ts";
import { planLeftovers, planTenancy, type TenancyPlan, type TenancyState } from "./tenancy/plan.ts";
import { newlyOutside } from "./tenancy/status.ts";

export type Context = {
  client: Client;
  stores: Stores;
  index: NodeIndex;
  /** What the stores have, and what we wrote since. */
  latest: { profiles: Latest<RuntimeProfile>; nodeRuntimes: Latest<NodeRuntime>; nodes: Latest<KubeObject> };
  slimRuntime: (runtime: NodeRuntime) => NodeRuntime;
  decisions: Decisions;
  pace: Pace;
  drains: DrainState;
  /** Nodes whose startup taints were looked at, with what makes looking again worth it. */
  untainted: Map<string, string>;
  recorder: EventRecorder;
  metrics: ProfileMetrics;
  enqueueNode: (name: string) => void;
  enqueueProfile: (name: string) => void;
  clock: Clock;
  staleAfterMs: number;
  /** Where histories and the agents' Leases are kept. */
  namespace: string;
  /** Namespaces that no profile's tenancy takes in. */
  reserved: string[];
  /** The API server has MutatingAdmissionPolicies. */
  mutates: () => boolean;
  log: Logger;
};

const { operator } = fieldManager;

const surroundings = (context: Context): Surroundings => {
  const { stores, index, latest, decisions, drains, clock, staleAfterMs, namespace, reserved, mutates } =
    context;
  return {
    stores,
    index,
    latest,
    decisions,
    drains,
    now: clock.now(),
    staleAfterMs,
    namespace,
    reserved,
    mutates: mutates(),
  };
};

/**
 * One profile: gather → plan → apply. First the RuntimeClass, whose fate decides the rest; then the policies that
 * send tenants behind it; then what each node shall hold (written by reconcileNode); then the status, Events and
 * metrics; last the finalizer.
 */
export const reconcileProfile = async (
  name: string,
  context: Context,
  signal: AbortSignal,
): Promise<{ requeueAfterMs: number } | undefined> => {
  const { pace } = context;
  const profile = context.latest.profiles.get(name);
  if (!profile) return forgetProfile(name, context, signal);

  const facts = pace.timed(() => gatherProfile(profile, surroundings(context)));
  if (needsFinalizer(facts)) await addFinalizer(facts, context, signal);

  const classPlan = planClass(facts);
  const classState = await applyClass(facts, classPlan, context, signal);

  const tenancyState = await putTenancyInForce(facts, planTenancy(facts, classState), context, signal);

  const target = desiredProfile(facts.profile);
  annotate({ "bulkhead.profile.revision": target.revision });
  const plan = pace.timed(() => {
    const planned = planProfile(facts, target, classState, tenancyState);
    decide(facts, planned.assignments, context);
    decideDrains(facts, planned.drains, context);
    return planned;
  });

  if (plan.statusChanged) await writeStatus(facts, plan.status, context, signal);
  for (const condition of plan.transitions) announce(facts.profile, condition, context);
  for (const node of plan.newlyFailed) {
    emit(
      facts.profile,
      context,
      "Warning",
      "NodeFailed",
      `node ${node.name}: ${node.reason}: ${node.message}`,
    );
  }
  for (const outside of newlyOutside(facts.profile.status?.tenancy, plan.status.tenancy)) {
    announceOutside(facts.profile, outside, context);
  }
  const conditionOf = (type: string) => plan.status.conditions?.find((condition) => condition.type === type);
  const isTrue = (type: string) => conditionOf(type)?.status === "True";
  context.metrics.profile(name, {
    ready: isTrue("Ready"),
    states: plan.states,
    progressing: conditionOf("Progressing")?.reason ?? "",
    soaking: plan.soaking,
    draining: plan.draining,
    pods: facts.pods.total,
    ...(plan.status.overheadMemory ? { overhead: plan.status.overheadMemory } : {}),
    ...(plan.status.tenancy
      ? {
          tenancy: {
            ...facts.tenancy.claims,
            // Who only records wants no alarm that nothing is refused.
            enforced: facts.profile.spec.tenancy?.mode === "Audit" ? undefined : isTrue("TenancyEnforced"),
          },
        }
      : {}),
  });

  // Last: a namespace that takes no more must hold up no wall.
  const removed = plan.finalizer === "remove";
  await keepHistory(
    removed ? forgetHistory(facts) : planHistory(facts, target, context.namespace),
    context,
    signal,
  );
  if (removed) {
    await removeFinalizer(facts.profile, context, signal);
    return undefined;
  }
  for (const state of [classState, tenancyState]) {
    if ("message" in state) throw new RuntimeError("failed-precondition", state.message);
  }
  // Agents that fall silent send no event, nor does a node that has been ready for long enough.
  const soakMs = plan.againAt === undefined ? Infinity : Math.max(0, plan.againAt - context.clock.now());
  return facts.nodes.length > 0 ? { requeueAfterMs: Math.min(context.staleAfterMs / 3, soakMs) } : undefined;
};

/** The profile is gone: so is everything that was decided for it, and what somebody's cut of the finalizer left. */
const forgetProfile = async (name: string, context: Context, signal: AbortSignal): Promise<undefined> => {
  const { client, stores, decisions, metrics, enqueueNode } = context;
  await applyTenancy(client, planLeftovers(name, policiesOf(name, stores)), {
    signal,
    fieldManager: operator,
  });
  context.latest.profiles.forget(name);
  context.index.forget(name);
  metrics.forget(name);
  for (const [node, decided] of decisions) {
    if (decided.delete(name)) enqueueNode(node);
  }
  return undefined;
};

const addFinalizer = async ({ profile }: ProfileFacts, { client, latest }: Context, signal: AbortSignal) => {
  const { name, resourceVersion, finalizers = [] } = profile.metadata;
  const patch = { metadata: { resourceVersion, finalizers: [...finalizers, finalizer] } };
  latest.profiles.wrote(await client.patch(runtimeProfiles, name, patch, { signal, fieldManager: operator }));
};

const removeFinalizer = async (profile: RuntimeProfile, context: Context, signal: AbortSignal) => {
  const { name, finalizers = [] } = profile.metadata;
  if (!finalizers.includes(finalizer)) return;
  // Read anew: a finalizer that another program added since must not be dropped.
  const current = await context.client.get(runtimeProfiles, name, { signal });
  await context.client.patch(
    runtimeProfiles,
    name,
    {
      metadata: {
        resourceVersion: current.metadata.resourceVersion,
        finalizers: (current.metadata.finalizers ?? []).filter((other) => other !== finalizer),
      },
    },
    { signal, fieldManager: operator },
  );
  context.log.info({ profile: name }, "profile removed");
};

type ClassExecutors = {
  [K in ClassStep["do"]]: (
    step: Extract<ClassStep, { do: K }>,
    facts: ProfileFacts,
    context: Context,
    signal: AbortSignal,
  ) => Promise<void>;
};

const classExecutors: ClassExecutors = {
  nothing: async () => {},
  // Created, not applied: a foreign class that appeared meanwhile must not be overwritten.
  "create-class": async ({ desired }, { profile }, context, signal) => {
    await context.client.create(runtimeClasses, desired, { signal, fieldManager: operator });
    emit(
      profile,
      context,
      "Normal",
      "RuntimeClassCreated",
      `created RuntimeClass "${desired.metadata.name}"`,
    );
  },
  "replace-class": async ({ desired, existing, drift }, { profile }, context, signal) => {
    const { labels: kept, annotations, uid, resourceVersion } = existing.metadata;
    await context.client.replace(
      runtimeClasses,
      {
        ...desired,
        metadata: {
          name: desired.metadata.name,
          labels: { ...kept, ...desired.metadata.labels },
          ...(annotations ? { annotations } : {}),
          ...(uid ? { uid } : {}),
          ...(resourceVersion ? { resourceVersion } : {}),
        },
      },
      { signal, fieldManager: operator },
    );
    emit(
      profile,
      context,
      "Normal",
      "RuntimeClassUpdated",
      `RuntimeClass "${desired.metadata.name}" was not as the profile wants it: ${drift.join(", ")}`,
    );
  },
  "recreate-class": async ({ desired, existing }, { profile }, context, signal) => {
    await deleteClass(existing.metadata, context, signal);
    await context.client.create(runtimeClasses, desired, { signal, fieldManager: operator });
    emit(
      profile,
      context,
      "Warning",
      "RuntimeClassRecreated",
      `RuntimeClass "${desired.metadata.name}" had another handler, which cannot be changed in place`,
    );
  },
  "delete-class": async ({ existing }, _facts, context, signal) =>
    deleteClass(existing.metadata, context, signal),
};

const deleteClass = async (
  { name, uid }: { name: string; uid?: string },
  { client }: Context,
  signal: AbortSignal,
) => {
  try {
    await client.delete(runtimeClasses, name, { signal, ...(uid ? { uid } : {}) });
  } catch (error) {
    if (!hasCode(error, "not-found")) throw error;
  }
};

/** Does the step; what the API server says against the class itself becomes a condition instead of an error. */
const applyClass = async (
  facts: ProfileFacts,
  { step, state }: ClassPlan,
  context: Context,
  signal: AbortSignal,
): Promise<ClassState> => {
  try {
    await (classExecutors[step.do] as (...args: unknown[]) => Promise<void>)(step, facts, context, signal);
    if (step.do !== "nothing") {
      context.log.info({ profile: facts.profile.metadata.name, step: step.do }, "runtime class");
    }
    return state;
  } catch (error) {
    if (hasCode(error, "invalid-argument") || hasCode(error, "permission-denied")) {
      return { class: "refused", message: messageOf(error) };
    }
    throw error;
  }
};

const putTenancyInForce = async (
  { profile }: ProfileFacts,
  plan: TenancyPlan,
  context: Context,
  signal: AbortSignal,
): Promise<TenancyState> => {
  const state = await applyTenancy(context.client, plan, { signal, fieldManager: operator });
  const { name } = profile.metadata;
  for (const step of plan.steps) {
    context.log.info({ profile: name, step: step.do, policy: step.object.metadata.name }, "tenancy policy");
  }
  if (plan.steps.some((step) => step.do === "replace") && state.tenancy === "in-force") {
    emit(
      profile,
      context,
      "Normal",
      "PoliciesUpdated",
      "admission policies were not as the profile wants them",
    );
  }
  return state;
};

/** Told to the tenant, too: the Event stands in the namespace. */
const announceOutside = (
  { metadata }: RuntimeProfile,
  { namespace, pods, example, reason }: ReturnType<typeof newlyOutside>[number],
  { recorder }: Context,
) =>
  recorder.emit({
    regarding: { apiVersion: "v1", kind: "Namespace", name: namespace, namespace },
    type: "Warning",
    reason: "PodsOutside",
    action: "Reconcile",
    note: `${pods} ${pods === 1 ? "pod runs" : "pods run"} outside the wall of RuntimeProfile "${metadata.name}", such as ${example}: ${reason}`,
  });

const keepHistory = async (
  steps: HistoryStep[],
  { client, namespace, log }: Context,
  signal: AbortSignal,
): Promise<void> => {
  for (const step of steps) {
    switch (step.do) {
      case "record":
        await client
          .create(controllerRevisions, step.revision, { signal, fieldManager: operator })
          .catch((error: unknown) => {
            // The watch will bring it.
            if (!hasCode(error, "already-exists")) throw error;
          });
        log.info(
          { revision: step.revision.metadata.name, number: step.revision.revision },
          "revision recorded",
        );
        break;
      case "renumber":
        await client.patch(
          controllerRevisions,
          step.name,
          { revision: step.number },
          { namespace, signal, fieldManager: operator },
        );
        break;
      case "forget": {
        const { name, uid } = step.revision.metadata;
        await client
          .delete(controllerRevisions, name, { namespace, signal, ...(uid ? { uid } : {}) })
          .catch((error: unknown) => {
            if (!hasCode(error, "not-found")) throw error;
          });
      }
    }
  }
};

/** Records what each node shall hold and has the nodes that differ reconciled. */
const decide = (
  facts: ProfileFacts,
  assignments: ReturnType<typeof planProfile>["assignments"],
  { decisions, enqueueNode, index, latest }: Context,
) => {
  const { name } = facts.profile.metadata;
  for (const node of facts.nodes) {
    const decided = decisions.get(node.name) ?? new Map();
    const before = decided.get(name);
    const assigned = assignments.get(node.name);
    const now = assigned === undefined ? (before ?? (node.selected ? "keep" : undefined)) : assigned;
    if (now === undefined) continue;
    if (!sameDecision(before, now)) {
      decisions.set(node.name, decided.set(name, now));
      index.decided(node.name, name);
      enqueueNode(node.name);
    } else if (!latest.nodeRuntimes.get(node.name)) enqueueNode(node.name);
  }
};

/** Which nodes are drained for which revision; those whose drain begins or ends are reconciled. */
const decideDrains = (
  { profile, nodes }: ProfileFacts,
  { revision, nodes: since }: ReturnType<typeof planProfile>["drains"],
  { drains: { decided, over }, enqueueNode }: Context,
) => {
  const { name } = profile.metadata;
  for (const node of nodes) {
    const begun = since.get(node.name);
    if (begun === undefined && node.drain === undefined) continue;
    const now = begun === undefined ? null : { revision, since: new Date(begun).toISOString() };
    decided.set(node.name, (decided.get(node.name) ?? new Map()).set(name, now));
    if (now === null && node.drain) over.delete(drainKey(node.name, name, node.drain));
    if (node.drain?.revision !== now?.revision) enqueueNode(node.name);
  }
};

const writeStatus = async (
  { profile }: ProfileFacts,
  status: NonNullable<RuntimeProfile["status"]>,
  { client, latest }: Context,
  signal: AbortSignal,
) => {
  const { name } = profile.metadata;
  latest.profiles.wrote(
    await client.applyStatus(
      runtimeProfiles,
      { metadata: { name }, status },
      { fieldManager: operator, force: true, signal },
    ),
  );
};

/** Conditions whose False is bad news, and the one whose True is. */
const isWarning = ({ type, status, reason }: Condition): boolean =>
  type === "Degraded"
    ? status === "True"
    : type === "Progressing"
      ? ["InUse", "FailureThreshold", "RolledBack"].includes(reason)
      : status === "False" && !["Deleting", "NodesNotReady", "NoNodes", "Audit"].includes(reason);

const announce = (profile: RuntimeProfile, condition: Condition, context: Context) => {
  // That nothing is wrong is no news on a profile that never was.
  if (condition.type === "Degraded" && condition.status === "False" && !profile.status?.conditions) return;
  const { type, status, reason, message } = condition;
  context.log.info({ profile: profile.metadata.name, type, status, reason }, "condition changed");
  emit(
    profile,
    context,
    isWarning(condition) ? "Warning" : "Normal",
    reason,
    `${type}=${status}: ${message}`,
  );
};

const emit = (
  profile: RuntimeProfile,
  { recorder }: Context,
  type: "Normal" | "Warning",
  reason: string,
  note: string,
) => {
  const { name, uid } = profile.metadata;
  recorder.emit({
    regarding: {
      apiVersion: runtimeProfiles.apiVersion,
      kind: runtimeProfiles.kind,
      name,
      ...(uid ? { uid } : {}),
    },
    type,
    reason,
    action: "Reconcile",
    note,
  });
};

/** One node: its NodeRuntime.spec, and the labels that scheduling goes by. */
export const reconcileNode = async (
  name: string,
  context: Context,
  signal: AbortSignal,
): Promise<{ requeueAfterMs: number } | undefined> => {
  const { client, latest, decisions } = context;
  const plan = planNode(gatherNode(name, surroundings(context)));

  if (plan.deleteRuntime) {
    const uid = latest.nodeRuntimes.get(name)?.metadata.uid;
    await client.delete(nodeRuntimes, name, { signal, ...(uid ? { uid } : {}) }).catch((error: unknown) => {
      if (!hasCode(error, "not-found")) throw error;
    });
  }
  const node = latest.nodes.get(name);
  if (!node) {
    decisions.delete(name);
    context.drains.decided.delete(name);
    context.untainted.delete(name);
    return undefined;
  }

  const owner = { apiVersion: "v1", kind: "Node", name, uid: node.metadata.uid ?? "" };
  const runtime = latest.nodeRuntimes.get(name);
  const owned = runtime?.metadata.ownerReferences?.some((ref) => ref.uid === owner.uid);
  // A node that came back under its old name is another node: its NodeRuntime must not go with the old one.
  const again = owned === false || plan.drainsChanged || plan.untold;
  const profiles = plan.profiles ?? (again ? runtime?.spec.profiles : undefined);
  if (profiles) {
    const written = await span("assign", { "bulkhead.profiles": profiles.length }, () => {
      // What the node's agent does about a change goes on in this trace.
      const trace = plan.profiles && traceparent();
      return client.apply(
        nodeRuntimes,
        {
          metadata: {
            name,
            labels: { [labels.managedBy]: managedBy },
            annotations: {
              [labels.leases]: context.namespace,
              ...(plan.drains.size > 0
                ? { [labels.drains]: JSON.stringify(Object.fromEntries(plan.drains)) }
                : {}),
              ...(trace ? { [labels.traceparent]: trace } : {}),
            },
            ownerReferences: [owner],
          },
          spec: { profiles },
        },
        { fieldManager: operator, force: true, signal },
      );
    });
    latest.nodeRuntimes.wrote(context.slimRuntime(written));
    context.log.debug(
      { node: name, profiles: profiles.map((p) => `${p.name}@${p.revision}`) },
      "node assigned",
    );
  }

  if (Object.keys(plan.labels).length > 0) {
    const labelled = await client.patch(
      nodes,
      name,
      { metadata: { labels: plan.labels } },
      { fieldManager: operator, signal },
    );
    latest.nodes.wrote(slimNode(labelled));
    context.log.info({ node: name, labels: plan.labels }, "node labelled");
  }
  await untaint(node, plan.untaint, context, signal);
  if (await askAway(name, plan.drains, context, signal)) return { requeueAfterMs: 2_000 };
  return plan.requeueAfterMs === undefined ? undefined : { requeueAfterMs: plan.requeueAfterMs };
};

/**
 * Takes startup taints off a node. Taints are not in what is watched of a node: it is read once when a profile begins to
 * serve there, and never for heartbeats. A taint that comes back later is somebody's own.
 */
const untaint = async (
  { metadata: { name, uid } }: KubeObject,
  keys: string[],
  { client, untainted, log }: Context,
  signal: AbortSignal,
): Promise<void> => {
  const looked = `${uid} ${keys}`;
  if (keys.length === 0 || untainted.get(name) === looked) return;
  const { metadata, spec } = await client.get(taintedNodes, name, { signal });
  const kept = (spec?.taints ?? []).filter(({ key }) => !keys.includes(key));
  if (kept.length < (spec?.taints ?? []).length) {
    await client.patch(
      taintedNodes,
      name,
      // Another may taint at the same time: then this fails, and is tried again.
      { metadata: { resourceVersion: metadata.resourceVersion }, spec: { taints: kept } },
      { fieldManager: operator, signal },
    );
    log.info({ node: name, taints: keys }, "startup taints taken off");
  }
  untainted.set(name, looked);
};
