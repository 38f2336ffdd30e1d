import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type RuntimeProfile, runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import { keyOf } from "@bulkhead/lib/kube/object.ts";
import { hasEnded, type Pod } from "@bulkhead/lib/kube/resources.ts";

const isForeign = ({ status }: RuntimeProfile): boolean =>
  status?.conditions?.some(({ reason }) => reason === "ForeignRuntimeClass") ?? false;

/** Whether the pod keeps one of the profiles from going: it uses its class, and neither ended nor is on its way out. */
export const holds = (profiles: readonly RuntimeProfile[]): ((pod: Pod) => boolean) => {
  const classes = new Set(profiles.filter((profile) => !isForeign(profile)).map(runtimeClassName));
  return (pod) =>
    classes.has(pod.spec?.runtimeClassName ?? "") &&
    pod.metadata.deletionTimestamp === undefined &&
    !hasEnded(pod);
};

/** Why a deletion that began now would not come to its end, in words; empty when nothing is known against it. Pure. */
export const whatHolds = (profiles: readonly RuntimeProfile[], pods: readonly Pod[]): string[] => [
  ...[...Map.groupBy(pods, ({ spec }) => spec?.runtimeClassName ?? "")].map(([name, users]) => {
    const names = users.map(keyOf).sort();
    const more = names.length > 10 ? ` and ${names.length - 10} more` : "";
    const use = names.length === 1 ? "pod uses" : "pods use";
    return `${names.length} ${use} RuntimeClass "${name}": ${names.slice(0, 10).join(", ")}${more}`;
  }),
  ...new Set(
    profiles.flatMap(({ status }) =>
      (status?.failedNodes ?? [])
        .filter(({ reason }) => reason === "AgentSilent")
        .map(({ name, message }) => `node "${name}" is away: ${message}`),
    ),
  ),
];

/** That a try before this one cannot be taken back: empty where none was. */
export const markedAlready = (profiles: readonly RuntimeProfile[]): string => {
  const names = profiles
    .filter(({ metadata }) => metadata.deletionTimestamp !== undefined)
    .map(({ metadata }) => metadata.name);
  return names.length === 0
    ? ""
    : ` (marked for deletion already, which nobody can take back: ${names.join(", ")}; each goes with its last pod)`;
};

/** What keeps Bulkhead from being gone, in words; empty when every node is what it was. Pure. */
export function stillThere(profiles: RuntimeProfile[], nodes: NodeRuntime[]): string[] {
  return [
    ...profiles.map(({ metadata, status }) => {
      const condition = status?.conditions?.find(
        ({ type, status: value }) => type === "Ready" && value !== "True",
      );
      const why = condition?.message ? `: ${condition.message}` : "";
      return `profile "${metadata.name}" is still there${why}`;
    }),
    ...nodes.flatMap((node) => {
      const { name, generation } = node.metadata;
      const { status } = node;
      // An agent that has never spoken has never touched its node.
      if (status === undefined || status.heartbeat === undefined) return [];
      if (status.observedGeneration !== generation)
        return [`node "${name}" has not yet seen what it shall be`];
      const busy = (status.profiles ?? []).map(
        (profile) => `${profile.name} (${profile.phase}: ${profile.message})`,
      );
      if (busy.length > 0) return [`node "${name}" still has ${busy.join(", ")}`];
      const leaving = status.conditions?.find(({ type }) => type === "Leaving");
      if (leaving !== undefined) return [`node "${name}": ${leaving.message}`];
      // The agent drops its conditions with the last of its files.
      return (status.conditions ?? []).length > 0 ? [`node "${name}" is not yet what it was`] : [];
    }),
  ];
}

/** For whoever reads that it failed. */
export const whatToDo =
  "end the pods and uninstall again; a node that is away: start it, or, where it is gone for good, delete its Node";

/** The same where no operator works: what is deleted then stays, marked, for nobody takes its finalizer off. */
export const startOperator =
  "without it no profile that is deleted would ever go: start it (kubectl get deployment,pods in that namespace) and uninstall again";
