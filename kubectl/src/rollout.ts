import { setTimeout as sleep } from "node:timers/promises";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { conditionOf } from "@bulkhead/lib/view/profile.ts";
import { harmless } from "./table.ts";

/** `kubectl bulkhead rollout …`: a profile's way to its nodes, as kubectl rollout is a Deployment's. */

export type Progress = { done: boolean; failed: boolean; text: string };

/** How far the newest spec has come. */
export const progressOf = (profile: RuntimeProfile): Progress => {
  const { name, generation } = profile.metadata;
  const { status } = profile;
  const nodes = status?.nodes;
  if (!status || status.observedGeneration !== generation || !nodes)
    return {
      done: false,
      failed: false,
      text: `Waiting for the operator to see the newest spec of "${name}"…`,
    };
  const accepted = conditionOf(profile, "Accepted");
  const degraded = conditionOf(profile, "Degraded");
  const ready = conditionOf(profile, "Ready");
  const progressing = conditionOf(profile, "Progressing");
  if (accepted?.status === "False" || degraded?.status === "True")
    return {
      done: false,
      failed: true,
      text: `"${name}" does not roll out: ${(accepted?.status === "False" ? accepted : degraded)?.message}`,
    };
  // All nodes may be ready, though the last of them not for minReadySeconds.
  if (ready?.status === "True" && progressing?.status !== "True")
    return {
      done: true,
      failed: false,
      text: `"${name}" is rolled out: ${nodes.ready} of ${nodes.desired} nodes ready at revision ${status.updateRevision}`,
    };
  // As kubectl's rollout of a DaemonSet that no node takes.
  if (ready?.reason === "NoNodes")
    return { done: true, failed: false, text: `"${name}" has no node to roll out to: ${ready.message}` };
  const why = progressing?.status === "True" || progressing?.reason === "Paused" ? progressing : ready;
  return {
    done: false,
    failed: false,
    text: `Waiting for "${name}": ${nodes.ready} of ${nodes.desired} nodes ready; ${why?.reason}: ${why?.message}`,
  };
};

/** Tells each change of the progress until it ends; rejects when the rollout failed or the time is over. */
export const waitForRollout = async (
  name: string,
  look: () => Promise<Progress>,
  options: { timeoutMs: number; watch: boolean; say: (text: string) => void; signal?: AbortSignal },
): Promise<void> => {
  const deadline = Date.now() + options.timeoutMs;
  let last = "";
  for (;;) {
    const { done, failed, text: said } = await look();
    const text = harmless(said);
    if (text !== last) {
      if (failed) throw new RuntimeError("failed-precondition", text);
      options.say(text);
      last = text;
    }
    if (done || !options.watch) return;
    if (Date.now() > deadline)
      throw new RuntimeError(
        "deadline-exceeded",
        `"${name}" is not rolled out after ${options.timeoutMs / 1000} s: ${text}`,
      );
    await sleep(1000, undefined, options.signal ? { signal: options.signal } : {});
  }
};

/** Stops or goes on giving the newest revision to nodes; true when that was not so before. */
export const setPaused = async (client: Client, name: string, paused: boolean): Promise<boolean> => {
  const profile = await client.get(runtimeProfiles, name);
  if ((profile.spec.rollout?.paused ?? false) === paused) return false;
  await client.patch(
    runtimeProfiles,
    name,
    { spec: { rollout: { paused } } },
    { fieldManager: "kubectl-bulkhead" },
  );
  return true;
};

/** Makes a new revision of what the profile is: each node in its turn installs and proves it again. */
export const restart = async (client: Client, name: string, now: Date): Promise<void> => {
  const { metadata, spec } = await client.get(runtimeProfiles, name);
  if (spec.rollout?.paused)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot restart "${name}": its rollout is paused (kubectl bulkhead rollout resume ${name})`,
    );
  await client.patch(
    runtimeProfiles,
    name,
    {
      // A spec that changed meanwhile is not what was to be restarted.
      metadata: { resourceVersion: metadata.resourceVersion },
      spec: { rollout: { restartedAt: now.toISOString() } },
    },
    { fieldManager: "kubectl-bulkhead" },
  );
};
