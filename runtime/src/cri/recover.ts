import { readdir, rm } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { exited, isVisible, started, stateLost } from "../container/state.ts";
import type { Handler } from "../handler/handler.ts";
import { podFiles, unmountShm } from "../pod/files.ts";
import { lost } from "../pod/state.ts";
import { discardContainer, releaseMounts } from "./container/remove.ts";
import { forgetRestore } from "./container/restore.ts";
import { notify } from "./notify.ts";
import { containerDir, containerRef, now, podDir, type Runtime, sandboxRef } from "./runtime.ts";

const { SIGKILL } = constants.signals;
const perPod = 30_000;
/** Between tries to take up what could not be at first: doubling, up to the last. */
const laterMs = [2_000, 30_000] as const;

/**
 * Makes memory true again after a start: handlers say what became of each pod and container, exits that happened
 * meanwhile included; what was half made is removed, or waits as a pod that is not ready. Pods whose handler cannot be
 * set up (its program is on a disk that is not there yet) run on, and are taken up as soon as it can be, until `stop`.
 */
export const recover = async (runtime: Runtime, stop: AbortSignal): Promise<void> => {
  const { pods, containers, log } = runtime;
  const from = performance.now();
  const all = pods.list().map(({ id }) => id);
  const waiting = await recoverPods(runtime, all, stop);
  const recordedPods = pods.recorded();
  const halfMade = containers
    .list()
    .filter(({ state, podId }) => state === "creating" || !recordedPods.has(podId))
    .map(({ id }) => id);
  const stuck = await discardAll(runtime, halfMade);
  await removeStrays(runtime);
  await runtime.disks
    .sweep(pods.recorded().union(containers.recorded()))
    .catch((err) => log.warn({ err }, "disks of containers that are gone could not be removed"));
  log.info(
    {
      pods: pods.list().length,
      containers: containers.list().length,
      ms: Math.round(performance.now() - from),
    },
    "recovered",
  );
  if (waiting.length > 0) void recoverLater(runtime, waiting, stuck, stop);
};

/** The ids of those that are left: their handler cannot be set up. */
const recoverPods = async (
  runtime: Runtime,
  ids: readonly string[],
  stop: AbortSignal,
): Promise<string[]> => {
  const results = await Promise.all(
    ids.map((id) => runtime.locks.run(id, stop, () => recoverPod(runtime, id)).catch(() => "recovered")),
  );
  const waiting = ids.filter((_, n) => results[n] === "no handler");
  if (waiting.length > 0)
    runtime.log.warn({ pods: waiting.length }, "pods wait until their handler can be set up");
  return waiting;
};

/** The ids of those that could not be removed. */
const discardAll = async (runtime: Runtime, ids: readonly string[]): Promise<string[]> => {
  const stuck: string[] = [];
  for (const id of ids)
    await discardContainer(runtime, id).catch((err) => {
      runtime.log.warn({ container: id, err }, "half-made container could not be removed");
      stuck.push(id);
    });
  return stuck;
};

const recoverLater = async (
  runtime: Runtime,
  waiting: string[],
  halfMade: string[],
  stop: AbortSignal,
): Promise<void> => {
  const [first, longest] = laterMs;
  for (let wait: number = first; waiting.length > 0; wait = Math.min(2 * wait, longest)) {
    await sleep(wait, undefined, { ref: false, signal: stop }).catch(() => {});
    if (stop.aborted) return;
    waiting = await recoverPods(runtime, waiting, stop);
  }
  await discardAll(runtime, halfMade);
  runtime.log.info("all pods are taken up");
};

const recoverPod = async (runtime: Runtime, id: string): Promise<"recovered" | "no handler"> => {
  const { pods, containers, handlers, exits, log } = runtime;
  const pod = pods.get(id);
  if (pod === undefined || pod.handler.kind === "delegate") return "recovered";
  if (pod.state === "creating")
    pods.learn(pod.id, (each) => lost(each, "the runtime ended while it was started"));
  let handler: Handler;
  try {
    handler = await handlers.of(pod.handler);
  } catch (err) {
    log.debug({ pod: id, handler: pod.handler.name, err }, "handler cannot be set up");
    return "no handler";
  }
  if (pod.state === "stopped") return "recovered";
  try {
    const mine = containers
      .list()
      .filter((container) => container.podId === pod.id)
      .filter(isVisible)
      .filter((container) => container.state !== "exited");
    const found = await handler.recover(
      sandboxRef(runtime, pod),
      mine.map((container) => containerRef(runtime, pod, container)),
      AbortSignal.timeout(perPod),
    );
    for (const { id: container, state } of mine) {
      const what = found.containers.get(container) ?? { state: "unknown" };
      switch (what.state) {
        case "exited":
          containers.learn(container, (each) => exited(each, what.exit));
          break;
        case "unknown":
          containers.learn(container, (each) =>
            stateLost(each, now(), "what became of it while the runtime was away is not known"),
          );
          break;
        case "running":
          // The runtime ended between the start and its record.
          if (state === "created") containers.learn(container, (each) => started(each, now()));
          break;
        case "created":
          break;
      }
      // Where pods are taken up late, somebody may wait for this already.
      if (containers.get(container)?.state !== "exited") continue;
      exits.happened(container);
      notify(runtime, "stopped", container, id);
    }
    // The runtime may have ended between noting that a start failed and killing what waited to be started.
    for (const container of containers.list())
      if (container.podId === pod.id && container.state === "exited" && container.reason === "StartError")
        await handler
          .kill(containerRef(runtime, pod, container), SIGKILL, true, AbortSignal.timeout(perPod))
          .catch((err) =>
            log.warn({ container: container.id, err }, "remains of a start could not be killed"),
          );
    if (!found.sandboxAlive)
      pods.learn(pod.id, (each) => lost(each, "what held the pod ended while the runtime was away"));
    return "recovered";
  } catch (error) {
    log.error({ pod: pod.id, handler: pod.handler.name, err: error }, "pod could not be recovered");
    pods.learn(pod.id, (each) => lost(each, messageOf(error)));
    return "recovered";
  }
};

/** Directories of which there is no record: the record is written first and deleted last, so these are mere remains. */
const removeStrays = async (runtime: Runtime): Promise<void> => {
  for (const id of await readdir(runtime.restoreRoot).catch(() => []))
    if (runtime.containers.get(id)?.state !== "created") await forgetRestore(runtime, id);
  const { pods, containers, log, network, linux } = runtime;
  const [recordedPods, recordedContainers] = [pods.recorded(), containers.recorded()];
  for (const id of await readdir(join(runtime.stateDir, "containers")).catch(() => [])) {
    if (recordedContainers.has(id)) continue;
    const dir = containerDir(runtime, id);
    try {
      await releaseMounts(runtime, id);
      await rm(dir, { recursive: true, force: true });
    } catch (err) {
      log.warn({ container: id, err }, "remains of a container could not be removed");
    }
  }
  for (const id of await readdir(join(runtime.stateDir, "pods")).catch(() => [])) {
    if (recordedPods.has(id)) continue;
    const dir = podDir(runtime, id);
    try {
      await unmountShm(podFiles(dir, "pod").shm, linux);
      await network.removeNamespaces(join(dir, "namespaces"));
      await rm(dir, { recursive: true, force: true });
    } catch (err) {
      log.warn({ pod: id, err }, "remains of a pod could not be removed");
    }
  }
};
