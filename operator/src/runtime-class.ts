import { labels } from "@bulkhead/lib/api/group.ts";
import { fixedHugepages } from "@bulkhead/lib/api/kata.ts";
import { type RuntimeProfile, runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { RuntimeClass } from "@bulkhead/lib/kube/resources.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import { parseQuantity } from "@bulkhead/lib/std/quantity.ts";

/** The value of the managed-by label on what the operator makes. */
export const managedBy = "bulkhead-operator";

/**
 * The RuntimeClass (node.k8s.io/v1) that a profile wants, with the memory that a pod takes beside its containers, and the
 * huge pages of its machine: the scheduler counts them, and the kubelet lets the pod's cgroup have as many.
 */
export const desiredRuntimeClass = (profile: RuntimeProfile, memory: string | undefined): RuntimeClass => {
  const { name } = profile.metadata;
  const { nodeSelector, tolerations, runtimeClass } = profile.spec;
  const selector = {
    ...nodeSelector,
    ...(runtimeClass.readiness === "label" ? { [labels.handlerReady(name)]: "ready" } : {}),
  };
  const cpu = runtimeClass.overhead?.cpu;
  const hugepages = fixedHugepages(profile.spec.handler);
  const podFixed = {
    ...(memory ? { memory } : {}),
    ...(cpu ? { cpu } : {}),
    // The API server takes huge pages only beside one of these.
    ...(Object.keys(hugepages).length > 0 && !memory && !cpu ? { memory: "0" } : {}),
    ...hugepages,
  };
  const scheduling = {
    ...(Object.keys(selector).length > 0 ? { nodeSelector: selector } : {}),
    ...(tolerations && tolerations.length > 0 ? { tolerations } : {}),
  };
  return {
    metadata: {
      name: runtimeClassName(profile),
      labels: { [labels.managedBy]: managedBy, [labels.profile]: name },
    },
    handler: name,
    ...(Object.keys(podFixed).length > 0 ? { overhead: { podFixed } } : {}),
    ...(Object.keys(scheduling).length > 0 ? { scheduling } : {}),
  };
};

/** The profile that a RuntimeClass belongs to, or undefined when it is not Bulkhead's. */
export const ownerOf = (existing: RuntimeClass): string | undefined =>
  existing.metadata.labels?.[labels.managedBy] === managedBy
    ? existing.metadata.labels[labels.profile]
    : undefined;

/** The API server writes quantities its own way (1024Mi becomes 1Gi): compare what they mean. */
export const amount = (quantity: string | undefined): number => parseQuantity(quantity ?? "0") ?? Number.NaN;

const sameAmount = (one: string | undefined, other: string | undefined): boolean => {
  const [a, b] = [amount(one), amount(other)];
  return a === b || Math.abs(a - b) <= 1e-9 * Math.max(a, b);
};

const sameOverhead = (one: RuntimeClass["overhead"], other: RuntimeClass["overhead"]): boolean => {
  const names = new Set([...Object.keys(one?.podFixed ?? {}), ...Object.keys(other?.podFixed ?? {})]);
  return [...names].every((name) => sameAmount(one?.podFixed[name], other?.podFixed[name]));
};

/** What makes `existing` another RuntimeClass than `desired`, in words for logs and Events; empty when nothing does. */
export const drift = (existing: RuntimeClass, desired: RuntimeClass): string[] => [
  ...(existing.handler === desired.handler ? [] : ["handler"]),
  ...(sameOverhead(existing.overhead, desired.overhead) ? [] : ["overhead"]),
  ...(sameJson(existing.scheduling?.nodeSelector ?? {}, desired.scheduling?.nodeSelector ?? {})
    ? []
    : ["scheduling.nodeSelector"]),
  ...(sameJson(existing.scheduling?.tolerations ?? [], desired.scheduling?.tolerations ?? [])
    ? []
    : ["scheduling.tolerations"]),
];
