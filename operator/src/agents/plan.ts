import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { AgentNode, AgentsView } from "@bulkhead/lib/view/agents.ts";
import type { NodeFacts } from "../facts.ts";
import { rollOut } from "../rollout.ts";

/** The newest version, as {@link rollOut} knows revisions. */
const newest = { revision: "newest" };
const earlier = { revision: "earlier" };

export type Surroundings = {
  now: number;
  staleAfterMs: number;
  /** A node's labels. */
  labelsOf(node: string): Record<string, string>;
  /** When the node's agent last reported, in ms, and of how many profiles: undefined where it has nothing to report. */
  reportOf(node: string): { heartbeat?: number; profiles: number } | undefined;
};

/** The node as one where a profile's revision is rolled out: the waves are the same. */
const factsOf = (node: AgentNode, { now, reportOf }: Surroundings): NodeFacts<{ revision: string }> => {
  const says = (phase: ProfileStatus["phase"], revision: string): ProfileStatus => ({
    ...{ name: "bulkhead", phase, revision, reason: node.reason, message: node.message },
    ...(revision === newest.revision ? {} : { attemptedRevision: newest.revision }),
  });
  const is = { name: node.name, selected: node.state !== "unreachable", observed: true, assigned: newest };
  switch (node.state) {
    case "ready":
      return { ...is, reported: says("Ready", newest.revision), heartbeat: now };
    case "failed":
      return { ...is, reported: says("RolledBack", earlier.revision), heartbeat: now };
    case "updating":
      // An agent that never speaks is no reason to try another node.
      return { ...is, reported: says("Installing", earlier.revision), heartbeat: now };
    case "unreachable":
    case "waiting": {
      const works = node.earlier?.works ?? false;
      const heartbeat = works ? reportOf(node.name)?.heartbeat : now;
      return {
        ...is,
        assigned: earlier,
        reported: says(works ? "Ready" : "Failed", works ? earlier.revision : ""),
        ...(heartbeat === undefined ? {} : { heartbeat }),
      };
    }
  }
};

/**
 * The pods to replace now, so that their nodes get the newest version: canary nodes first, then as many at a time as
 * maxUnavailable lets, none after too many failures. A node whose earlier agent does not work either loses nothing: it
 * is first, and counts against nothing. Pure.
 */
export const planAgents = (
  view: AgentsView,
  around: Surroundings,
): NonNullable<AgentNode["earlier"]>["pod"][] => {
  if (view.reason === "InvalidSpec") return [];
  const broken = ({ earlier }: AgentNode): number => Number(earlier !== undefined && !earlier.works);
  const nodes = view.nodes.toSorted((one, other) => broken(other) - broken(one));
  const { canarySelector, ...settings } = view.settings;
  const mayTry = nodes
    .map(({ name }) => name)
    .filter((name) => {
      const labels = around.labelsOf(name);
      return name !== "" && Object.entries(canarySelector).every(([key, value]) => labels[key] === value);
    });
  // An agent that has no profile to prove proves nothing.
  const telling = mayTry.filter((name) => (around.reportOf(name)?.profiles ?? 0) > 0);
  const { assignments } = rollOut(
    newest,
    { ...around, nodes: nodes.map((node) => factsOf(node, around)) },
    {
      ...settings,
      // A node is called ready once it has been so for minReadySeconds.
      minReadySeconds: 0,
      paused: view.reason === "Paused",
      // A node that has no agent just now may be the canary.
      canaryAmong: new Set([...(telling.length > 0 ? telling : mayTry), ""]),
    },
    undefined,
  );
  return nodes.flatMap(({ name, earlier }) =>
    earlier && assignments.get(name)?.revision === newest.revision ? [earlier.pod] : [],
  );
};
