import { runtimeClassName, secondsOf } from "@bulkhead/lib/api/runtime-profile.ts";
import { keyOf } from "@bulkhead/lib/kube/object.ts";
import { nodeRuntimes, pods } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";
import { type Drain, drainKey, inTheWay } from "./drain.ts";
import type { Context } from "./reconcile.ts";

/** Asks away what is to be drained of a node. True while pods are waited for. */
export const askAway = async (
  node: string,
  drains: ReadonlyMap<string, Drain>,
  context: Context,
  signal: AbortSignal,
): Promise<boolean> => {
  const { client, stores, latest, decisions, clock, log, drains: state, enqueueProfile } = context;
  let waits = false;
  for (const [profile, drain] of drains) {
    const key = drainKey(node, profile, drain);
    const decision = decisions.get(node)?.get(profile) ?? "keep";
    const entry =
      decision === "keep"
        ? latest.nodeRuntimes.get(node)?.spec.profiles.find((each) => each.name === profile)
        : decision;
    const { metadata, spec } = stores.profiles.get(profile) ?? {};
    if (entry?.revision === drain.revision || state.over.has(key) || !metadata || !spec?.rollout?.drain)
      continue;
    const finish = () => {
      state.over.add(key);
      enqueueProfile(profile);
    };
    const className = runtimeClassName({ metadata, spec });
    const { items } = await client.list(pods, { fieldSelector: `spec.nodeName=${node}`, signal });
    const left = inTheWay(items, className);
    if (left.length === 0) {
      log.info({ node, profile, revision: drain.revision }, "drained");
      finish();
      continue;
    }
    const tell = (reason: string, note: string) =>
      context.recorder.emit({
        regarding: { apiVersion: nodeRuntimes.apiVersion, kind: nodeRuntimes.kind, name: node },
        type: "Warning",
        reason,
        action: "Drain",
        note,
      });
    if (clock.now() - Date.parse(drain.since) >= secondsOf(spec.rollout.drain.deadline) * 1000) {
      const names = left.slice(0, 10).map(keyOf).join(", ");
      tell("DrainDeadline", `${profile}: ${left.length} pods stay on the former revision: ${names}`);
      finish();
      continue;
    }
    waits = true;
    for (const { metadata: pod } of left) {
      if (pod.deletionTimestamp) continue;
      await client.evict(pod, { signal }).catch((error: unknown) => {
        // Its budget allows none now; or it is gone.
        if (hasCode(error, "resource-exhausted") || hasCode(error, "not-found")) return;
        signal.throwIfAborted();
        tell("EvictionRefused", `${profile}: ${messageOf(error)}`);
      });
    }
  }
  return waits;
};
