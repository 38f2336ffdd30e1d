import { type DesiredProfile, type ProfileStatus, serves } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { ControllerRevision, RuntimeClass } from "@bulkhead/lib/kube/resources.ts";
import type { TenancyFacts } from "./tenancy/facts.ts";

/** All that a plan is made of. Gathered in one place, so that planning does no I/O and a test is a table. */

/** One node as one profile sees it. */
export type NodeFacts<T extends { revision: string } = DesiredProfile> = {
  name: string;
  /** The profile's nodeSelector matches. */
  selected: boolean;
  /** What NodeRuntime.spec holds of the profile, or will once what was decided is written. */
  assigned?: T;
  /** What the node's agent says of the profile. */
  reported?: ProfileStatus;
  /** When the agent last reported, in ms; undefined when it never did. */
  heartbeat?: number;
  /** Since when the revision that it reports serves there, in ms: as this operator saw, or was told when it began. */
  readySince?: number;
  /** Its pods of the profile are asked away for that revision; `over` when none is left, or the deadline has passed. */
  drain?: { revision: string; since: number; over: boolean };
  /** The agent has seen the NodeRuntime as it is now. */
  observed: boolean;
};

/** Latencies, overhead and counts of pods are left to the next plan, whatever asks for it: they come with every canary. */
const sameReport = (one: ProfileStatus | undefined, other: ProfileStatus | undefined): boolean =>
  one === other ||
  (one?.phase === other?.phase &&
    one?.revision === other?.revision &&
    one?.attemptedRevision === other?.attemptedRevision &&
    one?.reason === other?.reason &&
    one?.message === other?.message &&
    one?.canary?.passed === other?.canary?.passed);

/** A plan made now would not be another for what the node was and is; undefined while the profile has nothing there. */
export const sameToPlanning = (
  before: NodeFacts | undefined,
  now: NodeFacts | undefined,
  staleAfterMs: number,
): boolean => {
  if (before === undefined || now === undefined) return before === now;
  // The first sign of life, and one after a silence.
  const woke =
    now.heartbeat !== undefined &&
    (before.heartbeat === undefined || now.heartbeat - before.heartbeat > staleAfterMs / 2);
  // Only removal asks whether an agent has seen that there is nothing for it.
  const idle = now.assigned === undefined && now.reported === undefined;
  return (
    !woke &&
    before.selected === now.selected &&
    before.assigned?.revision === now.assigned?.revision &&
    sameReport(before.reported, now.reported) &&
    (!idle || before.observed === now.observed)
  );
};

export type ProfileFacts = {
  now: number;
  /** An agent silent for longer is not believed any more. */
  staleAfterMs: number;
  profile: RuntimeProfile;
  /** Why the spec cannot be used: it passed the API server's schema but not ours. */
  invalid?: string;
  runtimeClass?: RuntimeClass;
  /** Nodes that are selected or still hold something of the profile. */
  nodes: NodeFacts[];
  /** Pods of the RuntimeClass that have not ended: how many, and the first ten as namespace/name. */
  pods: { total: number; names: string[] };
  tenancy: TenancyFacts;
  /** What the profile was before, as far as it is kept. */
  revisions: ControllerRevision[];
};

/** The agent reported lately. */
export const isFresh = (
  node: Pick<NodeFacts, "heartbeat">,
  { now, staleAfterMs }: Pick<ProfileFacts, "now" | "staleAfterMs">,
): boolean => node.heartbeat !== undefined && now - node.heartbeat < staleAfterMs;

/** The node tried this revision and it did not work there. */
export const failedOn = (reported: ProfileStatus | undefined, revision: string): boolean =>
  reported !== undefined &&
  (reported.phase === "Failed" || reported.phase === "RolledBack") &&
  (reported.attemptedRevision ?? reported.revision) === revision;

/** The node serves this revision, and says so now. */
export const isHealthy = (
  node: Pick<NodeFacts, "reported" | "heartbeat">,
  revision: string,
  time: Pick<ProfileFacts, "now" | "staleAfterMs">,
): boolean =>
  node.reported?.revision === revision &&
  serves(node.reported) &&
  !failedOn(node.reported, revision) &&
  isFresh(node, time);

/** The nodes that were given this revision and failed it, when they are so many that the rollout must end. */
export const tooManyFailed = (
  { nodes, profile }: Pick<ProfileFacts, "nodes" | "profile">,
  revision: string,
): NodeFacts[] | undefined => {
  const selected = nodes.filter((node) => node.selected);
  const failed = selected.filter(
    (node) => node.assigned?.revision === revision && failedOn(node.reported, revision),
  );
  // On fewer nodes than the threshold, all of them are enough.
  const enough = Math.min(profile.spec.rollout.failureThreshold, selected.length);
  return failed.length > 0 && failed.length >= enough ? failed : undefined;
};
