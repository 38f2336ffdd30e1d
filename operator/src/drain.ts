import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { hasEnded, type Pod } from "@bulkhead/lib/kube/resources.ts";
import { z } from "zod";

/**
 * A drain (spec.rollout.drain): before a node goes to another revision, the profile's pods there are asked away by the
 * eviction API, which holds to their PodDisruptionBudgets, until none is left or the deadline is over. Meanwhile the
 * node lacks the profile's label, so that no new pod of it comes; pods of others stay, and nothing is cordoned. What is
 * drained for which revision and since when stands in an annotation of the NodeRuntime before the first pod is asked:
 * an operator that starts anew goes on where the last one was.
 */

const Drain = z.object({ revision: z.string(), since: z.iso.datetime() });
export type Drain = z.infer<typeof Drain>;
const Drains = z.record(z.string(), Drain);

/** What this process knows of drains beyond what stands in the API. */
export type DrainState = {
  /** By node and profile, as decided; null ends one. */
  decided: Map<string, Map<string, Drain | null>>;
  /** No pod is left, or the deadline was over: {@link drainKey}. */
  over: Set<string>;
};

export const drainKey = (node: string, profile: string, { revision }: Pick<Drain, "revision">): string =>
  `${node} ${profile} ${revision}`;

/** The drains that a NodeRuntime's annotation names, by profile. */
export const annotatedDrains = (runtime: NodeRuntime | undefined): Map<string, Drain> => {
  try {
    const text = runtime?.metadata.annotations?.[labels.drains];
    return new Map(Object.entries(text === undefined ? {} : Drains.parse(JSON.parse(text))));
  } catch {
    // Somebody else's hand: the next plan writes it anew.
    return new Map();
  }
};

/** The drains of a node as they were decided, and where nothing was since this process began, as they are written. */
export const drainsOf = (
  node: string,
  runtime: NodeRuntime | undefined,
  { decided }: DrainState,
): Map<string, Drain> => {
  const drains = annotatedDrains(runtime);
  for (const [profile, drain] of decided.get(node) ?? []) {
    if (drain === null) drains.delete(profile);
    else drains.set(profile, drain);
  }
  return drains;
};

/** Pods of a class that stand in the way. Those of a DaemonSet, and static ones, come back to where they were. */
export const inTheWay = (found: readonly Pod[], className: string): Pod[] =>
  found.filter(
    (pod) =>
      pod.spec?.runtimeClassName === className &&
      !hasEnded(pod) &&
      pod.metadata.annotations?.["kubernetes.io/config.mirror"] === undefined &&
      !pod.metadata.ownerReferences?.some(({ kind, controller }) => controller && kind === "DaemonSet"),
  );
