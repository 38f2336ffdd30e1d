import { type NodeRuntime, serves } from "@bulkhead/lib/api/node-runtime.ts";
import type { Lease } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import type { Clock } from "@bulkhead/lib/std/clock.ts";
import { heardOf, timeOf } from "@bulkhead/lib/view/sign-of-life.ts";
import { type NodeFacts, sameToPlanning } from "./facts.ts";
import type { Decisions } from "./plan.ts";

/**
 * What each profile sees of each node, kept as objects change: a change costs as much as it touches, and planning a
 * profile looks at its own nodes and nothing else.
 */
export type NodeIndex = {
  /** The nodes that the profile selects or that hold something of it, by name. Undefined selects none. */
  nodesOf(profile: string, selector: NodeSelector | undefined): NodeFacts[];
  /** A node, its NodeRuntime, its agent's Lease or what was decided for it changed: the profiles that see it otherwise than before. */
  changed(node: string): string[];
  /** What is decided of one profile on the node is another. */
  decided(node: string, profile: string): void;
  forget(profile: string): void;
  clear(): void;
};

export type NodeSelector = Record<string, string>;

const matches = (selector: NodeSelector | undefined, labels: Record<string, string>): boolean => {
  // Nothing of Bulkhead runs on Windows.
  if (selector === undefined || labels["kubernetes.io/os"] === "windows") return false;
  for (const key in selector) if (labels[key] !== selector[key]) return false;
  return true;
};

const isObserved = (runtime: NodeRuntime | undefined): boolean => {
  const { generation } = runtime?.metadata ?? {};
  const seen = runtime?.status?.observedGeneration;
  return generation === undefined || seen === undefined || seen >= generation;
};

type View = { selector: NodeSelector | undefined; text: string; nodes: Map<string, NodeFacts> };

export const createNodeIndex = (from: {
  nodes: Pick<Store<KubeObject>, "get" | "list">;
  nodeRuntimes: Pick<Store<NodeRuntime>, "get">;
  leases: Pick<Store<Lease>, "get">;
  decisions: Decisions;
  staleAfterMs: number;
  clock: Pick<Clock, "now">;
}): NodeIndex => {
  const views = new Map<string, View>();

  /**
   * Since when what serves now has done so without a silence, by our own clock. What was before we looked the agent
   * tells: a soak that an earlier operator began goes on.
   */
  const readySince = (
    { reported, heartbeat = 0 }: Pick<NodeFacts, "reported" | "heartbeat">,
    before: NodeFacts | undefined,
  ): number | undefined => {
    if (!serves(reported)) return undefined;
    const now = from.clock.now();
    if (before === undefined) return Math.min(timeOf(reported?.readySince) ?? now, now);
    const lasts =
      before.reported?.revision === reported?.revision &&
      heartbeat - (before.heartbeat ?? 0) < from.staleAfterMs;
    return (lasts ? before.readySince : undefined) ?? now;
  };

  const look = (
    name: string,
    profile: string,
    selector: NodeSelector | undefined,
    before: NodeFacts | undefined,
  ): NodeFacts | undefined => {
    const node = from.nodes.get(name);
    if (!node) return undefined;
    const selected = matches(selector, node.metadata.labels ?? {});
    const runtime = from.nodeRuntimes.get(name);
    const decision = from.decisions.get(name)?.get(profile);
    const assigned =
      decision === undefined || decision === "keep"
        ? runtime?.spec.profiles.find((entry) => entry.name === profile)
        : (decision ?? undefined);
    const reported = runtime?.status?.profiles?.find((entry) => entry.name === profile);
    if (!selected && !assigned && !reported) return undefined;
    const heartbeat = heardOf(runtime, from.leases.get(name));
    const said = { ...(reported ? { reported } : {}), ...(heartbeat === undefined ? {} : { heartbeat }) };
    const since = readySince(said, before);
    return {
      name,
      selected,
      observed: isObserved(runtime),
      ...(assigned ? { assigned } : {}),
      ...said,
      ...(since === undefined ? {} : { readySince: since }),
    };
  };

  /** Looks at a node anew; what it was before, and is now. */
  const refresh = (view: View, profile: string, node: string, before = view.nodes.get(node)) => {
    const now = look(node, profile, view.selector, before);
    if (now) view.nodes.set(node, now);
    else if (before) view.nodes.delete(node);
    return [before, now] as const;
  };

  return {
    nodesOf: (profile, selector) => {
      const text = JSON.stringify(selector ?? null);
      let view = views.get(profile);
      if (view?.text !== text) {
        const former = view?.nodes;
        view = { selector, text, nodes: new Map() };
        views.set(profile, view);
        for (const { metadata } of from.nodes.list())
          refresh(view, profile, metadata.name, former?.get(metadata.name));
      }
      return [...view.nodes.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
    },
    changed: (node) => {
      const profiles: string[] = [];
      for (const [profile, view] of views) {
        const [before, now] = refresh(view, profile, node);
        if (!sameToPlanning(before, now, from.staleAfterMs)) profiles.push(profile);
      }
      return profiles;
    },
    decided: (node, profile) => {
      const view = views.get(profile);
      if (view) refresh(view, profile, node);
    },
    forget: (profile) => void views.delete(profile),
    clear: () => views.clear(),
  };
};
