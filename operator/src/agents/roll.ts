import type { Client } from "@bulkhead/lib/kube/client.ts";
import type { EventRecorder } from "@bulkhead/lib/kube/events.ts";
import { daemonSets, pods } from "@bulkhead/lib/kube/resources.ts";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { type AgentsView, agentStates } from "@bulkhead/lib/view/agents.ts";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import { planAgents, type Surroundings } from "./plan.ts";

/**
 * A version of Bulkhead's own goes over the nodes by its agents, which bring the runtime: their DaemonSet replaces no pod
 * by itself (OnDelete), the operator deletes those whose turn has come. It keeps nothing: what is next follows from the
 * pods that are there (docs/adr/0011-own-version-in-waves.md).
 */
export type AgentsRollout = {
  /** Looks, and replaces the pods whose turn has come. */
  reconcile(signal: AbortSignal): Promise<{ requeueAfterMs: number } | undefined>;
  /** Another may have led meanwhile. */
  clear(): void;
};

/** Deadlines and reports send no event of the pod. */
const againMs = 2_000;

export const createAgentsRollout = (options: {
  client: Client;
  recorder: EventRecorder;
  registry: Registry;
  log: Logger;
  /** Uids of pods whose end was asked for, though no watch has told of it yet: {@link view} knows of them. */
  asked: Set<string>;
  view: () => AgentsView | undefined;
  around: () => Surroundings;
}): AgentsRollout => {
  const { client, recorder, log, asked, view: look, around } = options;
  const gauge = new Gauge({
    name: "bulkhead_agents",
    help: "Nodes by how they stand with the newest version of Bulkhead's own: ready, updating, waiting, failed, unreachable",
    labelNames: ["state"] as const,
    registers: [options.registry],
  });
  const inTurn = new Gauge({
    name: "bulkhead_agents_in_turn",
    help: "Nodes that are updating and have a time for it: agent.rollout.deadlineSeconds, then minReadySeconds",
    registers: [options.registry],
  });
  const paused = new Gauge({
    name: "bulkhead_agents_paused",
    help: "1 while nodes wait for the newest version of Bulkhead's own and agent.rollout.paused holds them",
    registers: [options.registry],
  });
  /** What was told last of a rollout that goes on. */
  let told = "";

  const tell = ({ daemonSet, version, reason, message, count, ...view }: AgentsView) => {
    for (const state of agentStates) gauge.set({ state }, count[state]);
    // A node that has no agent at all has none that could be late.
    inTurn.set(view.nodes.filter(({ state, name }) => state === "updating" && name !== "").length);
    paused.set(view.paused ? 1 : 0);
    // Nodes that boot or join are no news: a rollout is one while nodes wait, and ends once.
    if (reason === "RollingOut" && count.waiting === 0) return;
    if (reason === "RolledOut" && told === "") return;
    const key = `${version} ${reason} ${reason === "FailureThreshold" ? count.failed : ""}`;
    if (key === told) return;
    told = reason === "RolledOut" ? "" : key;
    log.info({ version, reason, message }, "agents");
    recorder.emit({
      regarding: { apiVersion: daemonSets.apiVersion, kind: daemonSets.kind, ...daemonSet },
      type: reason === "FailureThreshold" || reason === "InvalidSpec" ? "Warning" : "Normal",
      reason,
      action: "RollOut",
      note: `version ${version}: ${message}`,
    });
  };

  return {
    clear: () => {
      asked.clear();
      told = "";
    },
    reconcile: async (signal) => {
      const view = look();
      if (view === undefined) return undefined;
      tell(view);
      for (const { name, namespace, uid } of planAgents(view, around())) {
        await client.delete(pods, name, { namespace, uid, signal }).catch((error: unknown) => {
          if (!hasCode(error, "not-found")) throw error;
        });
        asked.add(uid);
        log.info({ pod: name, version: view.version }, "agent replaced");
      }
      return view.reason === "RolledOut" ? undefined : { requeueAfterMs: againMs };
    },
  };
};
