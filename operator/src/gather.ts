import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type RuntimeProfile,
  RuntimeProfileSpec,
  runtimeClassName,
} from "@bulkhead/lib/api/runtime-profile.ts";
import type { Lease } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { keyOf } from "@bulkhead/lib/kube/object.ts";
import {
  type AdmissionObject,
  type ControllerRevision,
  mutatingBindings,
  mutatingPolicies,
  type RuntimeClass,
  validatingBindings,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import { heardOf } from "@bulkhead/lib/view/sign-of-life.ts";
import { z } from "zod";
import { annotatedDrains, type DrainState, drainKey, drainsOf } from "./drain.ts";
import type { NodeFacts, ProfileFacts } from "./facts.ts";
import type { Latest } from "./latest.ts";
import type { NodeIndex } from "./node-index.ts";
import type { Decisions, NodeRuntimeFacts } from "./plan.ts";
import { ownerOf } from "./runtime-class.ts";
import { claimsOf, isElder, type TenancyFacts } from "./tenancy/facts.ts";
import { type Elder, isInForce, type Policy, podPolicyNames, profileOf } from "./tenancy/policies.ts";
import type { WatchedPod } from "./tenancy/rules.ts";
import { isAtLeast } from "./tenancy/wall.ts";

/** The copies of the cluster's objects that planning reads. */
export type Stores = {
  profiles: Store<RuntimeProfile>;
  nodeRuntimes: Store<NodeRuntime>;
  nodes: Store<KubeObject>;
  /** By which agents say that they live, by node. */
  leases: Pick<Store<Lease>, "get">;
  runtimeClasses: Store<RuntimeClass>;
  /** Only pods that have not ended. */
  pods: Store<WatchedPod>;
  namespaces: Store<KubeObject>;
  validatingPolicies: Store<AdmissionObject>;
  validatingBindings: Store<AdmissionObject>;
  mutatingPolicies: Store<AdmissionObject>;
  mutatingBindings: Store<AdmissionObject>;
  controllerRevisions: Store<ControllerRevision>;
};

/** Indexes of pods. */
export const byRuntimeClass = "runtimeClass";
export const byNamespace = "namespace";

export type Surroundings = {
  stores: Stores;
  index: Pick<NodeIndex, "nodesOf">;
  /** Nodes and their NodeRuntimes with what we wrote last. */
  latest: { nodes: Pick<Latest<KubeObject>, "get">; nodeRuntimes: Pick<Latest<NodeRuntime>, "get"> };
  decisions: Decisions;
  drains: DrainState;
  now: number;
  staleAfterMs: number;
  /** Where the agents' Leases are. */
  namespace: string;
  /** Namespaces that no profile's tenancy takes in. */
  reserved: string[];
  /** The API server has MutatingAdmissionPolicies. */
  mutates: boolean;
};

/** With the drain of the node for the profile, where there is one. */
const withDrain = (node: NodeFacts, profile: string, { latest, drains }: Surroundings): NodeFacts => {
  const runtime = latest.nodeRuntimes.get(node.name);
  // Most fleets have none, and are planned often.
  if (runtime?.metadata.annotations?.[labels.drains] === undefined && !drains.decided.has(node.name))
    return node;
  const drain = drainsOf(node.name, runtime, drains).get(profile);
  if (drain === undefined) return node;
  const over = drains.over.has(drainKey(node.name, profile, drain));
  return { ...node, drain: { revision: drain.revision, since: Date.parse(drain.since), over } };
};

/** Policies and bindings that are the profile's by label, or have a name that is kept for its. */
export const policiesOf = (name: string, stores: Stores): Policy[] =>
  (
    [
      [mutatingBindings, stores.mutatingBindings],
      [mutatingPolicies, stores.mutatingPolicies],
      [validatingBindings, stores.validatingBindings],
      [validatingPolicies, stores.validatingPolicies],
    ] as const
  ).flatMap(([resource, store]) =>
    [...store.list()]
      .filter(
        ({ metadata }) => metadata.labels?.[labels.profile] === name || profileOf(metadata.name) === name,
      )
      .map((object) => ({ resource, object })),
  );

const tenancyFacts = (
  profile: RuntimeProfile,
  valid: boolean,
  classes: string[],
  { stores, reserved, mutates }: Surroundings,
): TenancyFacts => {
  const elders: Elder[] = [];
  const stronger: string[] = [];
  if (valid && profile.spec.tenancy) {
    const { mode } = profile.spec.tenancy;
    for (const other of stores.profiles.list()) {
      const { name } = other.metadata;
      const parsed = RuntimeProfileSpec.safeParse(other.spec);
      if (name === profile.metadata.name || !parsed.success) continue;
      const { tenancy } = parsed.data;
      const isFirst =
        tenancy !== undefined &&
        isElder({ metadata: other.metadata, mode: tenancy.mode }, { metadata: profile.metadata, mode });
      if (isFirst && other.metadata.deletionTimestamp === undefined) {
        const elder = { name, tenancy };
        const names = podPolicyNames(name);
        const policy = stores.validatingPolicies.get(names.policy);
        const binding = stores.validatingBindings.get(names.binding);
        if (isInForce(elder, reserved, { policy, binding })) elders.push(elder);
      }
      const className = runtimeClassName({ metadata: other.metadata, spec: parsed.data });
      const runtimeClass = stores.runtimeClasses.get(className);
      if (runtimeClass && ownerOf(runtimeClass) === name && isAtLeast(parsed.data, profile.spec)) {
        stronger.push(className);
      }
    }
    elders.sort((one, other) => (one.name < other.name ? -1 : 1));
    stronger.sort();
  }
  return {
    elders,
    stronger,
    reserved,
    mutates,
    existing: policiesOf(profile.metadata.name, stores),
    claims: valid
      ? claimsOf(
          profile,
          [...classes, ...stronger],
          { elders, reserved },
          stores.namespaces.list(),
          (namespace) => stores.pods.indexed(byNamespace, namespace),
        )
      : { namespaces: 0, conflicts: [], outside: [] },
  };
};

/** Names are told only while a deletion waits: to sort a hundred thousand costs more than the rest of a plan. */
const countPods = (using: Iterable<WatchedPod>, named: boolean): ProfileFacts["pods"] => {
  if (named) {
    const names = [...using].map(keyOf).sort();
    return { total: names.length, names: names.slice(0, 10) };
  }
  let total = 0;
  for (const _pod of using) total++;
  return { total, names: [] };
};

/** All that planning one profile needs; undefined when there is no such profile. */
export const gatherProfile = (profile: RuntimeProfile, from: Surroundings): ProfileFacts => {
  const { stores, now, staleAfterMs } = from;
  const { name } = profile.metadata;
  const parsed = RuntimeProfileSpec.safeParse(profile.spec);
  const known: RuntimeProfile = parsed.success ? { ...profile, spec: parsed.data } : profile;
  const className = runtimeClassName(known);
  const runtimeClass = stores.runtimeClasses.get(className);
  // Pods of another's class are not ours to wait for.
  const ours = !runtimeClass || ownerOf(runtimeClass) === name;
  const using = ours ? stores.pods.indexed(byRuntimeClass, className) : [];
  return {
    now,
    staleAfterMs,
    profile: known,
    ...(parsed.success ? {} : { invalid: z.prettifyError(parsed.error) }),
    ...(runtimeClass ? { runtimeClass } : {}),
    nodes: from.index
      .nodesOf(name, parsed.success ? (known.spec.nodeSelector ?? {}) : undefined)
      .map((node) => withDrain(node, name, from)),
    pods: countPods(using, profile.metadata.deletionTimestamp !== undefined),
    revisions: [...stores.controllerRevisions.list()].filter(
      ({ metadata }) => metadata.labels?.[labels.profile] === name,
    ),
    tenancy: tenancyFacts(known, parsed.success, ours ? [className] : [], from),
  };
};

/** All that planning one node needs. */
export const gatherNode = (name: string, from: Surroundings): NodeRuntimeFacts => {
  const { stores, latest, decisions, now, staleAfterMs } = from;
  const node = latest.nodes.get(name);
  const runtime = latest.nodeRuntimes.get(name);
  const heartbeat = heardOf(runtime, stores.leases.get(name));
  return {
    now,
    staleAfterMs,
    ...(node ? { nodeLabels: node.metadata.labels ?? {} } : {}),
    ...(runtime ? { current: runtime.spec.profiles } : {}),
    reported: new Map((runtime?.status?.profiles ?? []).map((status) => [status.name, status])),
    ...(heartbeat === undefined ? {} : { heartbeat }),
    decided: decisions.get(name) ?? new Map(),
    drains: drainsOf(name, runtime, from.drains),
    annotated: annotatedDrains(runtime),
    told: runtime?.metadata.annotations?.[labels.leases] === from.namespace,
    profiles: new Set([...stores.profiles.list()].map((profile) => profile.metadata.name)),
    startupTaints: new Set(
      [...stores.profiles.list()]
        .filter(({ spec }) => spec?.runtimeClass?.readiness === "startupTaint")
        .map((profile) => profile.metadata.name),
    ),
  };
};
