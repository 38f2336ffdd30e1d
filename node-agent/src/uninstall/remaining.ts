import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";

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

/** For whoever reads that it failed; empty where no node is waited for. */
export const whatToDo = (nodes: NodeRuntime[]): string =>
  stillThere([], nodes).length === 0
    ? ""
    : " (a node that is away: start it and uninstall again; one that is gone for good: delete its Node)";
