import { constants } from "node:os";
import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";
import { exited, isVisible, started, stateLost } from "../container/state.ts";
import type { Handler } from "../handler/handler.ts";
import { lost } from "../pod/state.ts";
import { notify } from "./notify.ts";
import { containerRef, now, type Runtime, sandboxRef } from "./runtime.ts";

const { SIGKILL } = constants.signals;
const perPod = 30_000;

/** What was done about a pod: "no handler" and "silent" ones wait for another try. */
type Outcome = "recovered" | "no handler" | "silent";

/**
 * Makes a pod's records true after a start of the daemon. One whose holder lives and does not answer is `silent`: it
 * stays what its records say. With `end` its holder is ended instead. The pod's lock is held.
 */
export const recoverPod = async (runtime: Runtime, id: string, end = false): Promise<Outcome> => {
  const outcome = await attempt(runtime, id, end);
  if (outcome === "silent") runtime.silentPods.add(id);
  else runtime.silentPods.delete(id);
  return outcome;
};

/** Of a pod that waits until what holds it answers: ends that, and learns how its containers ended. Its lock is held. */
export const endSilent = async (runtime: Runtime, id: string): Promise<void> => {
  if (runtime.silentPods.has(id)) await recoverPod(runtime, id, true);
};

/** The same for a caller who holds no lock, before it ends one of the pod's containers. */
export const endSilentPodOf = async (
  runtime: Runtime,
  container: string,
  signal: AbortSignal,
): Promise<void> => {
  const found = runtime.containers.get(container);
  if (found === undefined || found.state === "exited" || !runtime.silentPods.has(found.podId)) return;
  await runtime.locks.run(found.podId, signal, () => endSilent(runtime, found.podId));
};

/** Waits for a take-up that is under way, before something new begins in the pod. For a caller who holds no lock. */
export const afterTakeUp = async (runtime: Runtime, podId: string, signal: AbortSignal): Promise<void> => {
  if (runtime.silentPods.has(podId)) await runtime.locks.run(podId, signal, async () => {});
};

const attempt = async (runtime: Runtime, id: string, end: boolean): Promise<Outcome> => {
  const { pods, containers, handlers, exits, silentPods, log } = runtime;
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
      end,
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
    if (!end && (hasCode(error, "deadline-exceeded") || hasCode(error, "unavailable"))) {
      log[silentPods.has(id) ? "debug" : "warn"](
        { pod: id, handler: pod.handler.name, err: error },
        "what holds the pod does not answer",
      );
      return "silent";
    }
    log.error({ pod: pod.id, handler: pod.handler.name, err: error }, "pod could not be recovered");
    pods.learn(pod.id, (each) => lost(each, messageOf(error)));
    return "recovered";
  }
};
