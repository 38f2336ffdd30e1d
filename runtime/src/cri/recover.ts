import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { podFiles, unmountShm } from "../pod/files.ts";
import { discardContainer, releaseMounts } from "./container/remove.ts";
import { forgetRestore } from "./container/restore.ts";
import { containerDir, podDir, type Runtime } from "./runtime.ts";
import { recoverPod } from "./take-up.ts";

/** How long a start waits for all pods: one whose holder answers late must not keep the others from kubelet. */
const startMs = 3_000;
/** Between tries to take up what could not be at first: doubling, up to the last. */
const laterMs = [2_000, 30_000] as const;

/**
 * Makes memory true again after a start: handlers say what became of each pod and container, exits that happened
 * meanwhile included; what was half made is removed, or waits as a pod that is not ready. Pods whose handler cannot be
 * set up (its program is on a disk that is not there yet), and those that a shim holds which lives and does not answer,
 * or not soon, run on as their records say, and are taken up as soon as they can be, until `stop`.
 */
export const recover = async (runtime: Runtime, stop: AbortSignal): Promise<void> => {
  const { pods, containers, log } = runtime;
  const from = performance.now();
  const underWay = new Set(pods.list().map(({ id }) => id));
  const recovery = recoverPods(runtime, [...underWay], stop, (id) => underWay.delete(id));
  const patience = new AbortController();
  await Promise.race([recovery, sleep(startMs, undefined, { signal: patience.signal }).catch(() => {})]);
  patience.abort();
  // Who ends one of their containers waits for what is under way.
  for (const id of underWay) runtime.silentPods.add(id);
  const late = underWay.size;
  if (late > 0) log.warn({ pods: late }, "pods are taken up while the others are served");
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
  if (late > 0 || (await recovery).length > 0) void recoverLater(runtime, recovery, stuck, stop);
};

/** The ids of those that are left. `done` hears of each that was tried, while its lock is held. */
const recoverPods = async (
  runtime: Runtime,
  ids: readonly string[],
  stop: AbortSignal,
  done: (id: string) => void = () => {},
): Promise<string[]> => {
  const results = await Promise.all(
    ids.map((id) =>
      runtime.locks
        .run(id, stop, () => recoverPod(runtime, id).finally(() => done(id)))
        .catch(() => "recovered"),
    ),
  );
  const left = (what: string): string[] => ids.filter((_, n) => results[n] === what);
  const [noHandler, silent] = [left("no handler"), left("silent")];
  if (noHandler.length > 0)
    runtime.log.warn({ pods: noHandler.length }, "pods wait until their handler can be set up");
  if (silent.length > 0) runtime.log.warn({ pods: silent.length }, "pods wait until what holds them answers");
  return [...noHandler, ...silent];
};

/** The ids of those that could not be removed: for those of pods that are not taken up yet it is too early. */
const discardAll = async (runtime: Runtime, ids: readonly string[]): Promise<string[]> => {
  const stuck: string[] = [];
  for (const id of ids) {
    if (runtime.silentPods.has(runtime.containers.get(id)?.podId ?? "")) {
      stuck.push(id);
      continue;
    }
    await discardContainer(runtime, id).catch((err) => {
      runtime.log.warn({ container: id, err }, "half-made container could not be removed");
      stuck.push(id);
    });
  }
  return stuck;
};

const recoverLater = async (
  runtime: Runtime,
  tried: Promise<string[]>,
  halfMade: string[],
  stop: AbortSignal,
): Promise<void> => {
  const [first, longest] = laterMs;
  let waiting = await tried;
  let stuck = await discardAll(runtime, halfMade);
  for (let wait: number = first; waiting.length > 0; wait = Math.min(2 * wait, longest)) {
    await sleep(wait, undefined, { ref: false, signal: stop }).catch(() => {});
    if (stop.aborted) return;
    waiting = await recoverPods(runtime, waiting, stop);
    stuck = await discardAll(runtime, stuck);
  }
  runtime.log.info("all pods are taken up");
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
