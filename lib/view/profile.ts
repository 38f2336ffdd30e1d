import type { NodeRuntime } from "../api/node-runtime.ts";
import type { Condition, RuntimeProfile } from "../api/runtime-profile.ts";
import { runtimeClassName } from "../api/runtime-profile.ts";
import { wallOf } from "./wall.ts";

/** How a profile stands, for people: what kubectl bulkhead and the operator's page show. Pure. */

export type ProfileView = {
  name: string;
  wall: string;
  runtimeClass: string;
  engine: string;
  nodes: { desired: number; updated: number; ready: number; failed: number };
  pods: number;
  revision: string;
  /** The condition that matters most now, by its reason. */
  state: string;
  message: string;
  healthy: boolean;
  startSeconds?: { p50: number; p99: number };
  ageMs: number;
};

export const conditionOf = (profile: RuntimeProfile, type: string): Condition | undefined =>
  profile.status?.conditions?.find((condition) => condition.type === type);

/** What an admin must hear first of a profile: why it is not accepted, what failed, what goes on, or that all is well. */
const leading = (profile: RuntimeProfile): Condition | undefined => {
  const is = (type: string, status: string) => {
    const condition = conditionOf(profile, type);
    return condition?.status === status ? condition : undefined;
  };
  return (
    is("Accepted", "False") ??
    is("RuntimeClassReady", "False") ??
    is("Degraded", "True") ??
    is("Progressing", "True") ??
    is("Ready", "False") ??
    conditionOf(profile, "Ready")
  );
};

export const profileView = (profile: RuntimeProfile, now: number): ProfileView => {
  const condition = leading(profile);
  const { status } = profile;
  const created = (profile.metadata as { creationTimestamp?: string }).creationTimestamp;
  return {
    name: profile.metadata.name,
    wall: wallOf(profile),
    runtimeClass: runtimeClassName(profile),
    engine: profile.spec.engine,
    nodes: status?.nodes ?? { desired: 0, updated: 0, ready: 0, failed: 0 },
    pods: status?.pods ?? 0,
    revision: status?.updateRevision ?? "",
    state: condition?.reason ?? "NotSeenYet",
    message: condition?.message ?? "the operator has not looked at it yet",
    healthy: conditionOf(profile, "Ready")?.status === "True",
    ...(status?.startSeconds ? { startSeconds: status.startSeconds } : {}),
    ageMs: created ? now - Date.parse(created) : 0,
  };
};

const byName = <T extends { name: string }>(a: T, b: T): number => (a.name < b.name ? -1 : 1);

export const statusView = (seen: { profiles: Iterable<RuntimeProfile>; now: number }): ProfileView[] =>
  Array.from(seen.profiles, (profile) => profileView(profile, seen.now)).sort(byName);

export type NodeView = {
  node: string;
  phase: string;
  revision: string;
  kernel: string;
  canary: string;
  pods: number;
  reason: string;
  message: string;
  heartbeatMs?: number;
};

/** One profile, with its conditions and its nodes. */
export type ProfileDetail = ProfileView & { conditions: Condition[]; onNodes: NodeView[] };

export const detailView = (
  profile: RuntimeProfile,
  seen: { nodeRuntimes: Iterable<NodeRuntime>; now: number },
): ProfileDetail => {
  const { name } = profile.metadata;
  const onNodes: NodeView[] = [];
  for (const runtime of seen.nodeRuntimes) {
    const reported = runtime.status?.profiles?.find((each) => each.name === name);
    const wanted = runtime.spec.profiles.find((each) => each.name === name);
    if (!reported && !wanted) continue;
    const { heartbeat } = runtime.status ?? {};
    onNodes.push({
      node: runtime.metadata.name,
      phase: reported?.phase ?? "Pending",
      revision: reported?.revision ?? "",
      kernel: reported?.canary?.kernel ?? "",
      canary: reported?.canary ? (reported.canary.passed ? "passed" : "failed") : "none yet",
      pods: Object.values(reported?.pods ?? {}).reduce((sum, count) => sum + count, 0),
      reason: reported?.reason ?? "NoReport",
      message: reported?.message ?? "the node agent has not reported yet",
      ...(heartbeat ? { heartbeatMs: seen.now - Date.parse(heartbeat) } : {}),
    });
  }
  return {
    ...profileView(profile, seen.now),
    conditions: profile.status?.conditions ?? [],
    onNodes: onNodes.sort((a, b) => (a.node < b.node ? -1 : 1)),
  };
};
