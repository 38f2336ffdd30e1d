import { readdir, rm } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { exited, isVisible, started, stateLost } from "../container/state.ts";
import { podFiles, unmountShm } from "../pod/files.ts";
import { lost, type Pod } from "../pod/state.ts";
import { discardContainer, releaseMounts } from "./container/remove.ts";
import { forgetRestore } from "./container/restore.ts";
import { containerDir, containerRef, now, podDir, type Runtime, sandboxRef } from "./runtime.ts";

const { SIGKILL } = constants.signals;
const perPod = 30_000;

/**
 * Makes memory true again after a start: handlers say what became of each pod and container, exits that happened
 * meanwhile included; what was half made is removed, or waits as a pod that is not ready.
 */
export const recover = async (runtime: Runtime): Promise<void> => {
  const { pods, containers, log } = runtime;
  const from = performance.now();
  await Promise.all(pods.list().map((pod) => recoverPod(runtime, pod)));
  for (const container of containers.list())
    if (container.state === "creating" || pods.get(container.podId) === undefined)
      await discardContainer(runtime, container.id).catch((err) =>
        log.warn({ container: container.id, err }, "half-made container could not be removed"),
      );
  await removeStrays(runtime);
  await runtime.disks
    .sweep(new Set([...pods.list(), ...containers.list()].map(({ id }) => id)))
    .catch((err) => log.warn({ err }, "disks of containers that are gone could not be removed"));
  log.info(
    {
      pods: pods.list().length,
      containers: containers.list().length,
      ms: Math.round(performance.now() - from),
    },
    "recovered",
  );
};

const recoverPod = async (runtime: Runtime, pod: Pod): Promise<void> => {
  const { pods, containers, handlers, log } = runtime;
  try {
    if (pod.handler.kind === "delegate") return;
    const handler = await handlers.of(pod.handler);
    if (pod.state === "creating")
      pods.learn(pod.id, (each) => lost(each, "the runtime ended while it was started"));
    if (pod.state === "stopped") return;
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
    for (const { id, state } of mine) {
      const what = found.containers.get(id) ?? { state: "unknown" };
      switch (what.state) {
        case "exited":
          containers.learn(id, (each) => exited(each, what.exit));
          break;
        case "unknown":
          containers.learn(id, (each) =>
            stateLost(each, now(), "what became of it while the runtime was away is not known"),
          );
          break;
        case "running":
          // The runtime ended between the start and its record.
          if (state === "created") containers.learn(id, (each) => started(each, now()));
          break;
        case "created":
          break;
      }
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
  } catch (error) {
    log.error({ pod: pod.id, handler: pod.handler.name, err: error }, "pod could not be recovered");
    pods.learn(pod.id, (each) => lost(each, messageOf(error)));
  }
};

/** Directories that no record knows: the record is written first and deleted last, so these are mere remains. */
const removeStrays = async (runtime: Runtime): Promise<void> => {
  for (const id of await readdir(runtime.restoreRoot).catch(() => []))
    if (runtime.containers.get(id)?.state !== "created") await forgetRestore(runtime, id);
  const { pods, containers, log, network, linux } = runtime;
  for (const id of await readdir(join(runtime.stateDir, "containers")).catch(() => [])) {
    if (containers.get(id)) continue;
    const dir = containerDir(runtime, id);
    try {
      await releaseMounts(runtime, id);
      await rm(dir, { recursive: true, force: true });
    } catch (err) {
      log.warn({ container: id, err }, "remains of a container could not be removed");
    }
  }
  for (const id of await readdir(join(runtime.stateDir, "pods")).catch(() => [])) {
    if (pods.get(id)) continue;
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
