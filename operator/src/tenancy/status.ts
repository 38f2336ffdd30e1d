import { runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { TenancyStatus } from "@bulkhead/lib/api/tenancy.ts";
import { mutatingPolicies } from "@bulkhead/lib/kube/resources.ts";
import type { ProfileFacts } from "../facts.ts";
import type { TenancyState } from "./plan.ts";

type View = { facts: ProfileFacts; tenancyState: TenancyState };
type Finding = { reason: string; message: string };

/** At most so many entries in a status. */
const most = 20;

const conflict = ({ facts }: View): Finding | undefined => {
  const { conflicts } = facts.tenancy.claims;
  const [first] = conflicts;
  return first
    ? {
        reason: "NamespaceConflict",
        message: `${conflicts.length} namespaces that spec.tenancy.namespaceSelector takes in belong to an older profile and stay there: ${conflicts
          .slice(0, 3)
          .map(({ namespace, profile }) => `${namespace} (${profile})`)
          .join(", ")}${conflicts.length > 3 ? ", …" : ""}`,
      }
    : undefined;
};

/** What of tenancy needs a person: reasons of Degraded, too. */
export const tenancyFault = (view: View): Finding | undefined => {
  const { tenancyState: state } = view;
  switch (state.tenancy) {
    case "foreign":
      return {
        reason: "ForeignPolicy",
        message: `${state.object} exists and was not made by Bulkhead: it is left as it is; delete it`,
      };
    case "refused":
      return { reason: "PolicyRefused", message: state.message };
    case "in-force":
    case "held":
      return conflict(view);
    case "none":
      return undefined;
  }
};

const outsideOf = ({ claims }: ProfileFacts["tenancy"]): string | undefined => {
  const pods = claims.outside.reduce((sum, { pods }) => sum + pods, 0);
  if (pods === 0) return undefined;
  const named = claims.outside
    .slice(0, 3)
    .map((is) => `${is.namespace} (${is.pods}, such as ${is.example}: ${is.reason})`)
    .join(", ");
  return `${pods} pods in ${claims.outside.length} namespaces run outside the wall: ${named}${claims.outside.length > 3 ? ", …" : ""}`;
};

/** The condition TenancyEnforced: True when no tenant's pod can be or is outside the wall. Undefined without tenancy. */
export const tenancyEnforced = (
  view: View,
): ({ type: "TenancyEnforced"; status: "True" | "False" } & Finding) | undefined => {
  const { facts, tenancyState: state } = view;
  const { tenancy } = facts.profile.spec;
  if (!tenancy || (state.tenancy === "none" && !facts.profile.metadata.deletionTimestamp)) return undefined;
  const no = (reason: string, message: string) =>
    ({ type: "TenancyEnforced", status: "False", reason, message }) as const;
  if (state.tenancy === "none") return no("Deleting", "the policies are gone");
  if (facts.invalid !== undefined) return no("InvalidSpec", "the policies are as they were");
  const fault = tenancyFault(view);
  if (fault) return no(fault.reason, fault.message);
  const name = `RuntimeClass "${runtimeClassName(facts.profile)}"`;
  if (state.tenancy === "held") {
    return no(
      "RuntimeClassNotReady",
      state.closed
        ? `${name} is not the profile's: pods are refused that ask for it`
        : `the policies wait for ${name}`,
    );
  }
  const undone = tenancy.default && !facts.tenancy.mutates;
  const instead = undone
    ? `; a pod that names no class is ${tenancy.mode === "Audit" ? "recorded" : "refused"}, not given it: this API server has no MutatingAdmissionPolicies of ${mutatingPolicies.apiVersion} (Kubernetes 1.36)`
    : "";
  const outside = outsideOf(facts.tenancy);
  if (tenancy.mode === "Audit") {
    return no(
      "Audit",
      `spec.tenancy.mode is Audit: nothing is refused${outside ? `; ${outside}` : ""}${instead}`,
    );
  }
  if (outside) return no("PodsOutside", `${outside}${instead}`);
  const message = `${facts.tenancy.claims.namespaces} namespaces stand behind ${name}${instead}`;
  // The wall is whole either way; but whoever relies on the default learns why pods are refused.
  return undone
    ? { type: "TenancyEnforced", status: "True", reason: "EnforcedWithoutDefault", message }
    : { type: "TenancyEnforced", status: "True", reason: "Enforced", message };
};

/** status.tenancy; undefined without tenancy. */
export const tenancyStatus = ({ facts, tenancyState }: View): TenancyStatus | undefined => {
  if (!facts.profile.spec.tenancy || tenancyState.tenancy === "none") return undefined;
  const { namespaces, conflicts, outside } = facts.tenancy.claims;
  return {
    namespaces,
    podsOutside: outside.reduce((sum, { pods }) => sum + pods, 0),
    ...(outside.length > 0 ? { outside: outside.slice(0, most) } : {}),
    ...(conflicts.length > 0 ? { conflicts: conflicts.slice(0, most) } : {}),
  };
};

/** Namespaces in which more pods run outside the wall than the last status says: each is worth an Event. */
export const newlyOutside = (
  before: TenancyStatus | undefined,
  after: TenancyStatus | undefined,
): NonNullable<TenancyStatus["outside"]> => {
  const known = new Map((before?.outside ?? []).map(({ namespace, pods }) => [namespace, pods]));
  return (after?.outside ?? []).filter(({ namespace, pods }) => pods > (known.get(namespace) ?? 0));
};
