import { z } from "zod";
import { labels } from "../api/group.ts";
import { faultOf, type NodeRuntime } from "../api/node-runtime.ts";
import { intOrPercent } from "../api/runtime-profile.ts";
import type { KubeObject } from "../kube/object.ts";
import type { AgentPod, DaemonSet } from "../kube/resources.ts";
import { age } from "./age.ts";

/**
 * How a version of Bulkhead's own stands on the nodes: what the operator goes by when it replaces agents, and what the
 * status page and `kubectl bulkhead rollout status` show. All of it follows from the agents' DaemonSet, its pods and what
 * they report; nothing is kept beside. Pure.
 */

/** The annotation by which the chart says how a version goes over the nodes (its values `agent.rollout`). */
export const AgentRollout = z.object({
  canaryNodes: z.int().min(0).max(100).default(1),
  /** Labels of the nodes that canaries are taken from. */
  canarySelector: z.record(z.string(), z.string()).default({}),
  maxUnavailable: intOrPercent.default("10%"),
  failureThreshold: z.int().min(1).default(1),
  /** An agent that is not ready after so long has failed. */
  deadlineSeconds: z.int().min(10).default(600),
  /** How long an agent must stay ready before its node counts as such and others follow. */
  minReadySeconds: z.int().min(0).max(604_800).default(0),
});
export type AgentRollout = z.infer<typeof AgentRollout>;

export const agentStates = ["ready", "updating", "waiting", "failed", "unreachable"] as const;

export type AgentNode = {
  name: string;
  state: (typeof agentStates)[number];
  reason: string;
  message: string;
  /** A pod of an earlier version that stands where it was: to be replaced, when its turn comes. */
  earlier?: { pod: { name: string; namespace: string; uid: string }; works: boolean };
  /** Its agent is ready, though not for minReadySeconds yet. */
  soaking?: true;
};

export type AgentsView = {
  daemonSet: { name: string; namespace: string; uid: string };
  /** As the agents will report it. */
  version: string;
  settings: AgentRollout;
  /** Where it stands: RolledOut, RollingOut, Paused, FailureThreshold or InvalidSpec. */
  reason: string;
  message: string;
  /** Nodes wait, and a pause holds them, whatever else the reason is. */
  paused: boolean;
  nodes: AgentNode[];
  count: Record<AgentNode["state"], number>;
};

export type AgentsSeen = {
  now: number;
  daemonSets: Iterable<DaemonSet>;
  revisions: Iterable<KubeObject & { revision: number }>;
  pods: Iterable<AgentPod>;
  nodeRuntimes: { get(name: string): NodeRuntime | undefined };
  /** Uids of pods whose end was asked for, though no watch has told of it yet. */
  asked?: ReadonlySet<string>;
};

/** The label of a DaemonSet's pods and revisions that says which template it is. */
export const templateHash = "controller-revision-hash";

const ownedBy = (object: KubeObject, uid: string | undefined): boolean =>
  object.metadata.ownerReferences?.some((owner) => owner.controller && owner.uid === uid) ?? false;

/** The pod that speaks for a node: the newest, and of those that go only where no other is. */
const outranks = (one: AgentPod, other: AgentPod): boolean => {
  const goes = (pod: AgentPod) => Number(pod.metadata.deletionTimestamp !== undefined);
  const made = (pod: AgentPod) => pod.metadata.creationTimestamp ?? "";
  return goes(one) === goes(other) ? made(one) > made(other) : goes(one) < goes(other);
};

const nodeOf = (
  pod: AgentPod,
  newest: string,
  { deadlineSeconds, minReadySeconds }: AgentRollout,
  { now, asked, nodeRuntimes }: AgentsSeen,
): AgentNode => {
  const { metadata, spec, status } = pod;
  const name = spec?.nodeName ?? "";
  const is = (state: AgentNode["state"], reason: string, message = ""): AgentNode => ({
    name,
    state,
    reason,
    message,
  });
  const since = (time = ""): number => now - (Date.parse(time) || now);
  const isLate = (ms: number): boolean => ms > deadlineSeconds * 1000;
  const condition = status?.conditions?.find(({ type }) => type === "Ready");
  const ready = condition?.status === "True";
  const containers = status?.containerStatuses ?? [];

  if (metadata.deletionTimestamp !== undefined || asked?.has(metadata.uid ?? "")) {
    const leaving = since(metadata.deletionTimestamp);
    return isLate(leaving)
      ? is("failed", "AgentNotReady", `its pod ${metadata.name} has not ended for ${age(leaving)}`)
      : is("updating", "RollingOut", "the earlier agent ends");
  }
  if (metadata.labels?.[templateHash] !== newest) {
    // The kubelet called every container ready, and the pod is not: nobody hears from that kubelet any more.
    if (!ready && containers.length > 0 && containers.every((each) => each.ready))
      return is("unreachable", "AgentSilent", "the node is not ready");
    const { namespace = "", uid = "" } = metadata;
    return {
      ...is("waiting", "Waiting", "its turn has not come"),
      earlier: { pod: { name: metadata.name, namespace, uid }, works: ready },
    };
  }
  if (ready) {
    const lasts = since(condition?.lastTransitionTime);
    if (lasts >= minReadySeconds * 1000) return is("ready", "Ready");
    return {
      ...is("updating", "RollingOut", `ready for ${age(lasts)}, of ${minReadySeconds} s`),
      soaking: true,
    };
  }
  // One that was ready, and is not since its node booted, begins anew.
  const waited = Math.min(
    since(metadata.creationTimestamp),
    since(condition?.lastTransitionTime ?? metadata.creationTimestamp),
  );
  const { heartbeat = "", ...reported } = nodeRuntimes.get(name)?.status ?? {};
  // What was said before is of the agent before, or of the node before it booted.
  const fault = Date.parse(heartbeat) > now - waited && faultOf(reported);
  if (fault) return is("failed", fault.reason, fault.message);
  return isLate(waited)
    ? is("failed", "AgentNotReady", `its pod ${metadata.name} is not ready after ${age(waited)}`)
    : is("updating", "RollingOut", "the agent puts its version in place and proves it");
};

const few = (nodes: AgentNode[]): string => {
  const told = nodes.slice(0, 5).map(({ name, reason, message }) => `${name}: ${reason}: ${message}`);
  return `${told.join("; ")}${nodes.length > 5 ? `; and ${nodes.length - 5} more` : ""}`;
};

/** Undefined where no DaemonSet of Bulkhead's is, or its controller has not looked at it yet. */
export const agentsView = (seen: AgentsSeen): AgentsView | undefined => {
  const daemonSet = [...seen.daemonSets].find(
    ({ metadata }) => metadata.annotations?.[labels.agentRollout] !== undefined,
  );
  const { metadata, spec, status } = daemonSet ?? {};
  if (!metadata || (status?.observedGeneration ?? -1) < (metadata.generation ?? 0)) return undefined;
  const newest = [...seen.revisions]
    .filter((revision) => ownedBy(revision, metadata.uid))
    .reduce<(KubeObject & { revision: number }) | undefined>(
      (last, each) => (last === undefined || each.revision > last.revision ? each : last),
      undefined,
    )?.metadata.labels?.[templateHash];
  if (newest === undefined) return undefined;

  const { settings, invalid } = settingsOf(metadata.annotations?.[labels.agentRollout] ?? "");
  const speaking = new Map<string, AgentPod>();
  for (const pod of seen.pods) {
    const node = pod.spec?.nodeName;
    if (node === undefined || !ownedBy(pod, metadata.uid)) continue;
    const other = speaking.get(node);
    if (other === undefined || outranks(pod, other)) speaking.set(node, pod);
  }
  const nodes = [...speaking.values()].map((pod) => nodeOf(pod, newest, settings, seen));
  // Between two pods a node has none, and is not well for that.
  for (let at = nodes.length; at < (status?.desiredNumberScheduled ?? 0); at++)
    nodes.push({ name: "", state: "updating", reason: "RollingOut", message: "a node waits for its agent" });
  nodes.sort((one, other) => (one.name < other.name ? -1 : 1));

  const of = (state: AgentNode["state"]) => nodes.filter((node) => node.state === state);
  const count = Object.fromEntries(
    agentStates.map((state) => [state, of(state).length]),
  ) as AgentsView["count"];
  const version =
    spec?.template?.spec?.containers
      ?.flatMap(({ env = [] }) => env)
      .find(({ name }) => name === "AGENT_VERSION")?.value ?? newest;
  const paused = count.waiting > 0 && metadata.annotations?.[labels.agentRolloutPaused] === "true";
  const tell = (reason: string, message: string): AgentsView => {
    const { name, namespace = "", uid = "" } = metadata;
    return { daemonSet: { name, namespace, uid }, version, settings, reason, message, paused, nodes, count };
  };
  const soaking = nodes.filter((node) => node.soaking).length;
  const progress = `${count.ready} of ${nodes.length} nodes have it, ${count.updating} updating${
    soaking > 0 ? ` (${soaking} ready for less than ${settings.minReadySeconds} s)` : ""
  }, ${count.waiting} waiting${count.unreachable > 0 ? `, ${count.unreachable} unreachable` : ""}`;
  if (invalid !== undefined) return tell("InvalidSpec", invalid);
  if (count.failed >= settings.failureThreshold)
    return tell(
      "FailureThreshold",
      `stopped: ${count.failed} nodes failed: ${few(of("failed"))}; ${progress}`,
    );
  if (paused) return tell("Paused", progress);
  return tell(count.ready + count.unreachable === nodes.length ? "RolledOut" : "RollingOut", progress);
};

const settingsOf = (text: string): { settings: AgentRollout; invalid?: string } => {
  try {
    return { settings: AgentRollout.parse(JSON.parse(text)) };
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : "it is no JSON";
    return {
      settings: AgentRollout.parse({}),
      invalid: `annotation ${labels.agentRollout} of the DaemonSet: ${why}`,
    };
  }
};
