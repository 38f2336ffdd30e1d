import { labels } from "@bulkhead/lib/api/group.ts";
import { runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { AdmissionObject } from "@bulkhead/lib/kube/resources.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import type { ProfileFacts } from "../facts.ts";
import { managedBy, ownerOf } from "../runtime-class.ts";
import type { ClassState } from "../status.ts";
import { desiredPolicies, type Policy } from "./policies.ts";

/** One thing to do about a policy or binding. */
export type TenancyStep =
  | ({ do: "create" } & Policy)
  /** Replaced whole: an apply would leave what another put in, such as a condition that never holds. */
  | ({ do: "replace"; existing: AdmissionObject } & Policy)
  | ({ do: "delete" } & Policy);

/** How tenancy stands after this reconcile. */
export type TenancyState =
  /** The profile asks for none. */
  | { tenancy: "none" }
  | { tenancy: "in-force" }
  /** Nothing was changed, or all but the stronger walls is refused: the profile's own class cannot be relied on. */
  | { tenancy: "held"; closed: boolean }
  /** A policy of the name that the profile's would have is not Bulkhead's. */
  | { tenancy: "foreign"; object: string }
  /** The API server would not take it. */
  | { tenancy: "refused"; message: string };

export type TenancyPlan = { steps: TenancyStep[]; state: TenancyState };

const isOurs = ({ metadata }: AdmissionObject, profile: string): boolean =>
  metadata.labels?.[labels.managedBy] === managedBy && metadata.labels[labels.profile] === profile;

const same = (one: Policy, other: Policy): boolean =>
  one.resource.kind === other.resource.kind && one.object.metadata.name === other.object.metadata.name;

const differs = (existing: AdmissionObject, desired: AdmissionObject): boolean =>
  !sameJson(existing.spec, desired.spec) ||
  !sameJson(existing.metadata.ownerReferences, desired.metadata.ownerReferences);

/** From what is there to `wanted`: what is missing or differs in their order, then the rest away, bindings first. */
const steps = (wanted: Policy[], existing: Policy[]): TenancyStep[] => [
  ...wanted.flatMap((policy): TenancyStep[] => {
    const there = existing.find((other) => same(other, policy));
    if (!there) return [{ do: "create", ...policy }];
    return differs(there.object, policy.object) ? [{ do: "replace", ...policy, existing: there.object }] : [];
  }),
  ...existing
    .filter((policy) => !wanted.some((other) => same(other, policy)))
    .sort(({ resource: one }, { resource: other }) =>
      one.kind === other.kind ? 0 : one.kind.endsWith("Binding") ? -1 : 1,
    )
    .map((policy): TenancyStep => ({ do: "delete", ...policy })),
];

/** The profile's RuntimeClass is there and is what the profile wants, or was. */
const ownClass = ({ profile, runtimeClass }: ProfileFacts, { class: state }: ClassState): boolean =>
  state === "ours" ||
  (state === "refused" && runtimeClass !== undefined && ownerOf(runtimeClass) === profile.metadata.name);

/**
 * The RuntimeClasses that stand for the profile's wall, its own first. The same go into the policies and into the
 * count of those who run outside.
 */
export const classesOf = (facts: ProfileFacts, classState: ClassState): string[] => [
  ...(ownClass(facts, classState) ? [runtimeClassName(facts.profile)] : []),
  ...facts.tenancy.stronger,
];

/** What is left of a profile that is gone. */
export const planLeftovers = (name: string, existing: Policy[]): TenancyPlan => ({
  steps: steps(
    [],
    existing.filter(({ object }) => isOurs(object, name)),
  ),
  state: { tenancy: "none" },
});

/** Policies: made, mended, left when they are another's, and gone with the profile or its spec.tenancy. */
export const planTenancy = (facts: ProfileFacts, classState: ClassState): TenancyPlan => {
  const { profile } = facts;
  const { name, deletionTimestamp } = profile.metadata;
  const { elders, reserved, mutates } = facts.tenancy;
  const foreign = facts.tenancy.existing.filter(({ object }) => !isOurs(object, name));
  const existing = facts.tenancy.existing.filter(({ object }) => isOurs(object, name));
  if (facts.invalid !== undefined) return { steps: [], state: { tenancy: "held", closed: false } };

  const { tenancy } = profile.spec;
  // Until the class is gone pods may still come for it, and shall not come without.
  const leaving = deletionTimestamp !== undefined && classState.class !== "ours";
  if (!tenancy || leaving) return { steps: steps([], existing), state: { tenancy: "none" } };

  const trusted = ownClass(facts, classState);
  // Before the class was ever there, tenants go on as they did; once the wall stood, it does not open.
  if (!trusted && existing.length === 0) return { steps: [], state: { tenancy: "held", closed: false } };
  const wanted = desiredPolicies({
    profile,
    tenancy,
    classes: classesOf(facts, classState),
    elders,
    reserved,
    ...(trusted && mutates && tenancy.default ? { defaultClass: runtimeClassName(profile) } : {}),
  });
  const taken = wanted.find((policy) => foreign.some((other) => same(other, policy)));
  if (taken) {
    return {
      steps: [],
      state: { tenancy: "foreign", object: `${taken.resource.kind} "${taken.object.metadata.name}"` },
    };
  }
  return {
    steps: steps(wanted, existing),
    state: trusted ? { tenancy: "in-force" } : { tenancy: "held", closed: true },
  };
};
