import { type DesiredProfile, serves } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import { failedOn, isFresh, isHealthy, type NodeFacts, type ProfileFacts } from "./facts.ts";

/** How far a revision has come. */
export type Stage =
  | { stage: "done" }
  | { stage: "paused"; waiting: number }
  | { stage: "halted"; failed: string[] }
  | { stage: "canary"; nodes: string[]; soaking: number }
  | { stage: "waves"; updating: number; soaking: number; waiting: number };

/** What is rolled out: a profile's revision, or a version of Bulkhead's own. */
type Revision = { revision: string };

export type Rollout<T extends Revision = DesiredProfile> = Stage & {
  /** What each node shall hold of the profile; null takes it away. Nodes not named stay as they are. */
  assignments: Map<string, T | null>;
  /** Nodes whose pods of the profile are asked away before they get the revision, and since when. */
  drains: Map<string, number>;
  /** When the first of the nodes that are ready has been so for minReadySeconds, in ms. */
  soakedAt?: number;
};

/** `25%` of 10 is 2; never less than one, or nothing would ever move. */
export const maxUnavailableOf = (
  value: RuntimeProfileSpec["rollout"]["maxUnavailable"],
  total: number,
): number =>
  typeof value === "number" ? value : Math.max(1, Math.floor((Number.parseInt(value, 10) * total) / 100));

type Policy = Pick<
  RuntimeProfileSpec["rollout"],
  "canaryNodes" | "maxUnavailable" | "failureThreshold" | "minReadySeconds" | "paused" | "drain"
> & {
  /** Names of the nodes that canaries are taken from; all of them when left out. */
  canaryAmong?: ReadonlySet<string>;
};

/**
 * Which nodes get the revision now. Canary nodes first; when they are healthy, the others, of which those where an
 * earlier revision serves only as many at a time as maxUnavailable lets (a node where nothing serves yet loses
 * nothing by trying). A node is healthy once it has been so for minReadySeconds. Too many failures stop it. Pure: the
 * same facts give the same nodes.
 */
export const rollOut = <T extends Revision>(
  target: T,
  facts: Pick<ProfileFacts, "now" | "staleAfterMs"> & { nodes: NodeFacts<T>[] },
  policy: Policy,
  /**
   * The revision that was on every node before, from status: nodes that join get it without ceremony, and those that went
   * on to another one come back to it without canaries.
   */
  currentRevision: string | undefined,
): Rollout<T> => {
  const assignments: Rollout<T>["assignments"] = new Map();
  const drains: Rollout<T>["drains"] = new Map();
  for (const node of facts.nodes) if (!node.selected && node.assigned) assignments.set(node.name, null);

  const selected = facts.nodes.filter((node) => node.selected);
  const { revision } = target;
  const updated = selected.filter((node) => node.assigned?.revision === revision);
  const failed = updated.filter((node) => failedOn(node.reported, revision));
  const serving = updated.filter((node) => isHealthy(node, revision, facts));
  const soaked = (node: NodeFacts<T>): number =>
    (node.readySince ?? facts.now) + policy.minReadySeconds * 1000;
  // Where it was on every node before, nobody waits for what it does.
  const soaking = currentRevision === revision ? [] : serving.filter((node) => soaked(node) > facts.now);
  const unproven = new Set(soaking);
  const healthy = serving.filter((node) => !unproven.has(node));
  const settled = new Set([...failed, ...serving]);
  const pending = updated.filter((node) => !settled.has(node));
  const begun = ({ drain }: NodeFacts<T>) =>
    policy.drain !== undefined && drain?.revision === revision ? drain : undefined;
  const promising = byPromise(facts);
  const others = selected
    .filter((node) => node.assigned?.revision !== revision)
    .sort((one, other) => Number(!begun(one)) - Number(!begun(other)) || promising(one, other));
  /** The revision; where pods of another are to go first, a drain until they have. */
  const give = (nodes: NodeFacts<T>[]) => {
    for (const node of nodes) {
      const drain = begun(node);
      const full =
        policy.drain !== undefined && serves(node.reported) && node.reported?.revision !== revision;
      if (full) drains.set(node.name, drain?.since ?? facts.now);
      if (!full || drain?.over) assignments.set(node.name, target);
    }
    return nodes;
  };
  for (const node of pending) {
    const drain = begun(node);
    // Until the new revision serves: pods that went would come back to the former one.
    if (drain) drains.set(node.name, drain.since);
  }

  const found = {
    assignments,
    drains,
    ...(soaking.length > 0 ? { soakedAt: soaking.map(soaked).reduce((a, b) => Math.min(a, b)) } : {}),
  };
  if (others.length === 0) {
    return pending.length + failed.length + soaking.length === 0
      ? { stage: "done", ...found }
      : { stage: "waves", updating: pending.length, soaking: soaking.length, waiting: 0, ...found };
  }
  const replacing = others.filter((node) => serves(node.reported));
  const idle = others.filter((node) => !serves(node.reported));
  const proven = currentRevision === revision;
  // What every node had needs no turn where nothing serves: neither a pause nor what fails elsewhere holds it up.
  const joined = proven ? give(idle) : [];
  const waiting = others.length - joined.length;
  if (waiting === 0) {
    return {
      stage: "waves",
      updating: pending.length + joined.length,
      soaking: soaking.length,
      waiting,
      ...found,
    };
  }
  if (policy.paused) return { stage: "paused", waiting, ...found };
  if (failed.length >= policy.failureThreshold) {
    return { stage: "halted", failed: failed.map((node) => node.name), ...found };
  }

  const mayTry = ({ name }: NodeFacts<T>): boolean => policy.canaryAmong?.has(name) ?? true;
  const canaries = proven ? 0 : Math.min(policy.canaryNodes, selected.filter(mayTry).length);
  const missing = canaries - healthy.filter(mayTry).length;
  if (missing > 0) {
    // A canary whose agent fell silent tells nothing: another takes its place.
    const trying = [...soaking, ...pending].filter(
      (node) => mayTry(node) && (node.heartbeat === undefined || isFresh(node, facts)),
    );
    const chosen = give(others.filter(mayTry).slice(0, Math.max(0, missing - trying.length)));
    const nodes = [...trying, ...chosen].map((node) => node.name);
    return { stage: "canary", nodes, soaking: soaking.length, ...found };
  }

  const fresh = proven ? joined : give(idle);
  // Also one that serves nothing: it may have joined just now, or booted, with pods that wait for its canary.
  const away = [...pending, ...soaking, ...failed].filter(
    ({ reported }) => reported && (reported.revision !== "" || !failedOn(reported, revision)),
  ).length;
  const budget = Math.max(0, maxUnavailableOf(policy.maxUnavailable, selected.length) - away);
  const next = give(replacing.slice(0, budget));
  return {
    stage: "waves",
    updating: pending.length + fresh.length + next.length,
    soaking: soaking.length,
    waiting: replacing.length - next.length,
    ...found,
  };
};

/** Nodes whose agent answers first, then those that never said anything, then the silent; in their order among equals. */
const byPromise = (time: Pick<ProfileFacts, "now" | "staleAfterMs">) => {
  const rank = (node: Pick<NodeFacts, "heartbeat">) =>
    isFresh(node, time) ? 0 : node.heartbeat === undefined ? 1 : 2;
  return (one: Pick<NodeFacts, "heartbeat">, other: Pick<NodeFacts, "heartbeat">) => rank(one) - rank(other);
};
