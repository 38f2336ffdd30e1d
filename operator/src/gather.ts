import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type RuntimeProfile,
  RuntimeProfileSpec,
  runtimeClassName,
} from "@bulkhead/lib/api/runtime-profile.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { keyOf } from "@bulkhead/lib/kube/object.ts";
import {
  type AdmissionObject,
  type ControllerRevision,
  mutatingBindings,
  mutatingPolicies,
  type Pod,
  type RuntimeClass,
  validatingBindings,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import { z } from "zod";
import type { NodeFacts, ProfileFacts } from "./facts.ts";
import type { Decision, NodeRuntimeFacts } from "./plan.ts";
import { ownerOf } from "./runtime-class.ts";
import { claimsOf, isElder, type TenancyFacts } from "./tenancy/facts.ts";
import { type Elder, type Policy, profileOf } from "./tenancy/policies.ts";
import type { WatchedPod } from "./tenancy/rules.ts";
import { isAtLeast } from "./tenancy/wall.ts";

/** The copies of the cluster's objects that planning reads. */
export type Stores = {
  profiles: Store<RuntimeProfile>;
  nodeRuntimes: Store<NodeRuntime>;
  nodes: Store<KubeObject>;
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

export const hasEnded = ({ status }: Pod): boolean =>
  status?.phase === "Succeeded" || status?.phase === "Failed";

/** What the operator decided for nodes, by node and profile. It outruns NodeRuntime.spec by the time a write takes. */
export type Decisions = Map<string, Map<string, Decision>>;

export type Surroundings = {
  stores: Stores;
  decisions: Decisions;
  now: number;
  staleAfterMs: number;
  /** Namespaces that no profile's tenancy takes in. */
  reserved: string[];
  /** The API server has MutatingAdmissionPolicies. */
  mutates: boolean;
};

const matches = (selector: Record<string, string> | undefined, labels: Record<string, string>): boolean =>
  // Nothing of Bulkhead runs on Windows.
  labels["kubernetes.io/os"] !== "windows" &&
  Object.entries(selector ?? {}).every(([key, value]) => labels[key] === value);

const timeOf = (heartbeat: string | undefined): number | undefined => {
  const time = heartbeat === undefined ? Number.NaN : Date.parse(heartbeat);
  return Number.isNaN(time) ? undefined : time;
};

const isObserved = (runtime: NodeRuntime | undefined): boolean => {
  const { generation } = runtime?.metadata ?? {};
  const seen = runtime?.status?.observedGeneration;
  return generation === undefined || seen === undefined || seen >= generation;
};

const nodeFacts = (name: string, selected: boolean, profile: string, from: Surroundings): NodeFacts => {
  const runtime = from.stores.nodeRuntimes.get(name);
  const decision = from.decisions.get(name)?.get(profile);
  const assigned =
    decision === undefined || decision === "keep"
      ? runtime?.spec.profiles.find((entry) => entry.name === profile)
      : (decision ?? undefined);
  const reported = runtime?.status?.profiles?.find((entry) => entry.name === profile);
  const heartbeat = timeOf(runtime?.status?.heartbeat);
  return {
    name,
    selected,
    observed: isObserved(runtime),
    ...(assigned ? { assigned } : {}),
    ...(reported ? { reported } : {}),
    ...(heartbeat === undefined ? {} : { heartbeat }),
  };
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
    for (const other of stores.profiles.list()) {
      const { name } = other.metadata;
      const parsed = RuntimeProfileSpec.safeParse(other.spec);
      if (name === profile.metadata.name || !parsed.success) continue;
      if (parsed.data.tenancy && isElder(other, profile)) elders.push({ name, tenancy: parsed.data.tenancy });
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

/** All that planning one profile needs; undefined when there is no such profile. */
export const gatherProfile = (profile: RuntimeProfile, from: Surroundings): ProfileFacts => {
  const { stores, now, staleAfterMs } = from;
  const { name } = profile.metadata;
  const parsed = RuntimeProfileSpec.safeParse(profile.spec);
  const known: RuntimeProfile = parsed.success ? { ...profile, spec: parsed.data } : profile;
  const className = runtimeClassName(known);
  const runtimeClass = stores.runtimeClasses.get(className);
  const nodes: NodeFacts[] = [];
  for (const node of stores.nodes.list()) {
    const selected = parsed.success && matches(known.spec.nodeSelector, node.metadata.labels ?? {});
    const facts = nodeFacts(node.metadata.name, selected, name, from);
    if (selected || facts.assigned || facts.reported) nodes.push(facts);
  }
  // Pods of another's class are not ours to wait for.
  const ours = !runtimeClass || ownerOf(runtimeClass) === name;
  const using = ours ? [...stores.pods.indexed(byRuntimeClass, className)] : [];
  return {
    now,
    staleAfterMs,
    profile: known,
    ...(parsed.success ? {} : { invalid: z.prettifyError(parsed.error) }),
    ...(runtimeClass ? { runtimeClass } : {}),
    nodes: nodes.sort((a, b) => (a.name < b.name ? -1 : 1)),
    pods: { total: using.length, names: using.map(keyOf).sort().slice(0, 10) },
    revisions: [...stores.controllerRevisions.list()].filter(
      ({ metadata }) => metadata.labels?.[labels.profile] === name,
    ),
    tenancy: tenancyFacts(known, parsed.success, ours ? [className] : [], from),
  };
};

/** All that planning one node needs. */
export const gatherNode = (name: string, from: Surroundings): NodeRuntimeFacts => {
  const { stores, decisions, now, staleAfterMs } = from;
  const node = stores.nodes.get(name);
  const runtime = stores.nodeRuntimes.get(name);
  const heartbeat = timeOf(runtime?.status?.heartbeat);
  return {
    now,
    staleAfterMs,
    ...(node ? { nodeLabels: node.metadata.labels ?? {} } : {}),
    ...(runtime ? { current: runtime.spec.profiles } : {}),
    reported: new Map((runtime?.status?.profiles ?? []).map((status) => [status.name, status])),
    ...(heartbeat === undefined ? {} : { heartbeat }),
    decided: decisions.get(name) ?? new Map(),
    profiles: new Set([...stores.profiles.list()].map((profile) => profile.metadata.name)),
    startupTaints: new Set(
      [...stores.profiles.list()]
        .filter(({ spec }) => spec?.runtimeClass?.readiness === "startupTaint")
        .map((profile) => profile.metadata.name),
    ),
  };
};
