import { labels } from "@bulkhead/lib/api/group.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import {
  agentPods,
  agentSelector,
  type DaemonSet,
  daemonSets,
  nodeRuntimes,
  templateRevisions,
} from "@bulkhead/lib/kube/resources.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type AgentsView, agentsView } from "@bulkhead/lib/view/agents.ts";
import { listAll } from "./cluster.ts";
import type { Progress } from "./rollout.ts";

/** `kubectl bulkhead rollout …` without a profile: Bulkhead's own version on its way over the nodes. */

const find = async (client: Client, namespace: string): Promise<DaemonSet> => {
  const all = await listAll(client, daemonSets, { namespace });
  const found = all.find(({ metadata }) => metadata.annotations?.[labels.agentRollout] !== undefined);
  if (found) return found;
  throw new RuntimeError(
    "not-found",
    `Cannot find the DaemonSet of Bulkhead's agents in namespace "${namespace}": --bulkhead-namespace names another`,
  );
};

/** How the newest version stands; undefined while the DaemonSet's controller has not seen it. */
export const readAgents = async (client: Client, namespace: string): Promise<AgentsView | undefined> => {
  // First of all: what is read after it is of this template or a newer one.
  const daemonSet = await find(client, namespace);
  const scope = { namespace, labelSelector: agentSelector };
  const [revisions, pods, runtimes] = await Promise.all([
    listAll(client, templateRevisions, scope),
    listAll(client, agentPods, scope),
    listAll(client, nodeRuntimes),
  ]);
  return agentsView({
    now: Date.now(),
    daemonSets: [daemonSet],
    revisions,
    pods,
    nodeRuntimes: new Map(runtimes.map((each) => [each.metadata.name, each])),
  });
};

export const agentsProgress = (view: AgentsView | undefined): Progress => {
  if (view === undefined)
    return {
      done: false,
      failed: false,
      text: "Waiting for the DaemonSet's controller to see the newest version…",
    };
  const { version, reason, message } = view;
  const text = `Bulkhead ${version}: ${reason}: ${message}`;
  return {
    done: reason === "RolledOut",
    failed: reason === "FailureThreshold" || reason === "InvalidSpec",
    text,
  };
};

/** Holds the newest version back from further nodes, or lets it go on; what is named when that was not so before. */
export const setAgentsPaused = async (
  client: Client,
  namespace: string,
  paused: boolean,
): Promise<{ name: string; changed: boolean }> => {
  const { metadata } = await find(client, namespace);
  const is = metadata.annotations?.[labels.agentRolloutPaused] === "true";
  if (is !== paused)
    await client.patch(
      daemonSets,
      metadata.name,
      { metadata: { annotations: { [labels.agentRolloutPaused]: paused ? "true" : null } } },
      { namespace, fieldManager: "kubectl-bulkhead" },
    );
  return { name: metadata.name, changed: is !== paused };
};
