import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Tenancy, TenancyStatus } from "@bulkhead/lib/api/tenancy.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import type { Elder, Policy } from "./policies.ts";
import { rulesBehind, type WatchedPod } from "./rules.ts";
import { selects } from "./selector.ts";
import { wallOf } from "./wall.ts";

/** All that a profile's tenancy is planned from. */
export type TenancyFacts = {
  /** Profiles with tenancy that are older: what they claim is theirs. */
  elders: Elder[];
  /** RuntimeClasses of other profiles whose wall is at least as strong. */
  stronger: string[];
  /** Namespaces that are nobody's: the system's and Bulkhead's own. */
  reserved: string[];
  /** The API server has MutatingAdmissionPolicies (Kubernetes 1.36 and later). */
  mutates: boolean;
  /** Policies and bindings that are this profile's by label or by name. */
  existing: Policy[];
  /** How many namespaces the profile has, which it would have if no older one had them, and who runs outside. */
  claims: Claims;
};

export type Claims = {
  namespaces: number;
  conflicts: NonNullable<TenancyStatus["conflicts"]>;
  /** By namespace, the most first. */
  outside: NonNullable<TenancyStatus["outside"]>;
};

/** A namespace that the selector takes in and that is not exempt. */
const claims = (tenancy: Tenancy, reserved: string[], { metadata }: KubeObject): boolean =>
  !reserved.includes(metadata.name) &&
  !tenancy.exempt?.namespaces?.includes(metadata.name) &&
  selects(tenancy.namespaceSelector, metadata.labels ?? {});

type Aged = { metadata: RuntimeProfile["metadata"]; mode: Tenancy["mode"] };

/**
 * Who comes first where two profiles claim a namespace: one that enforces before one that only records, which would
 * open it; then the older; of two of one second, by name.
 */
export const isElder = (one: Aged, other: Aged): boolean => {
  const key = ({ metadata, mode }: Aged) =>
    `${mode === "Enforce" ? 0 : 1} ${metadata.creationTimestamp ?? ""} ${metadata.name}`;
  return key(one) < key(other);
};

/**
 * The namespaces of a profile, and the pods in them that do not stand behind its wall. Static pods are among these:
 * nobody can refuse them.
 */
export const claimsOf = (
  { spec }: Pick<RuntimeProfile, "spec">,
  classes: string[],
  from: Pick<TenancyFacts, "elders" | "reserved">,
  namespaces: Iterable<KubeObject>,
  podsIn: (namespace: string) => Iterable<WatchedPod>,
): Claims => {
  const { tenancy } = spec;
  const result: Claims = { namespaces: 0, conflicts: [], outside: [] };
  if (!tenancy) return result;
  const judged = new Set(rulesBehind(wallOf(spec)).map((rule) => rule.name));
  for (const namespace of namespaces) {
    if (!claims(tenancy, from.reserved, namespace)) continue;
    const { name } = namespace.metadata;
    const elder = from.elders.find((older) => claims(older.tenancy, from.reserved, namespace));
    if (elder) {
      result.conflicts.push({ namespace: name, profile: elder.name });
      continue;
    }
    result.namespaces++;
    let pods = 0;
    let worst: { example: string; reason: string } | undefined;
    for (const pod of podsIn(name)) {
      const reason = classes.includes(pod.spec?.runtimeClassName ?? "")
        ? pod.broken?.find((rule) => judged.has(rule))
        : "RuntimeClass";
      if (reason === undefined) continue;
      pods++;
      // The first by name, so that the same pods give the same status.
      if (!worst || pod.metadata.name < worst.example) worst = { example: pod.metadata.name, reason };
    }
    if (worst) result.outside.push({ namespace: name, pods, ...worst });
  }
  const byName = (one: { namespace: string }, other: { namespace: string }) =>
    one.namespace < other.namespace ? -1 : 1;
  result.conflicts.sort(byName);
  result.outside.sort((one, other) => other.pods - one.pods || byName(one, other));
  return result;
};
