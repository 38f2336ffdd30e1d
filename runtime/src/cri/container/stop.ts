import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { StopContainerResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { containerRef, findContainer, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { endSilentPodOf } from "../take-up.ts";
import { killContainer } from "./kill.ts";

/** setTimeout's longest wait; a longer grace period is none. */
const maxGrace = 2 ** 31 - 1;

/**
 * StopContainer: the container's stop signal, once however often we are asked; after the grace period SIGKILL.
 * A timeout of 0 kills at once.
 */
export const stopContainer =
  (runtime: Runtime): RuntimeMethods["stopContainer"] =>
  async (request, signal) => {
    const id = runtime.containers.find(request.containerId)?.id;
    if (id !== undefined) {
      const grace = Math.min(Number(request.timeout) * 1000, maxGrace);
      if (grace > 0 && (await endsAlone(runtime, id, grace, signal)))
        return create(StopContainerResponseSchema);
      await endSilentPodOf(runtime, id, signal);
      await killContainer(runtime, id, signal);
    }
    return create(StopContainerResponseSchema);
  };

/** Containers that have had their stop signal. A restart of the daemon forgets it: a second one does no harm. */
const asked = new WeakMap<Runtime, Set<string>>();

const endsAlone = async (
  runtime: Runtime,
  id: string,
  grace: number,
  signal: AbortSignal,
): Promise<boolean> => {
  // A start under way comes first: the signal must meet the program.
  const running = await runtime.locks.run(id, signal, async () => {
    const found = findContainer(runtime, id);
    return found?.container.state === "running" ? found : undefined;
  });
  if (running === undefined) return false;
  const { container, pod, handler } = running;
  const exit = runtime.exits.wait(id, signal).then(() => true);
  exit.catch(() => {});
  const told = asked.get(runtime) ?? new Set();
  asked.set(runtime, told);
  const over = new AbortController();
  try {
    const begun = performance.now();
    let left = grace;
    if (!told.has(id)) {
      told.add(id);
      const sent = handler
        .kill(containerRef(runtime, pod, container), container.stopSignal, false, signal)
        .catch((error: unknown) => {
          if (hasCode(error, "not-found")) return;
          if (signal.aborted || !hasCode(error, "deadline-exceeded")) throw error;
          // Maybe it got the signal all the same. What the grace period has left, and then it is ended without being asked.
          left -= performance.now() - begun;
        });
      // A shim may say that it has sent it long after the container has ended by it.
      if ((await Promise.race([exit, sent])) === true) return true;
    }
    return await Promise.race([exit, sleep(Math.max(0, left), false, { signal: over.signal })]);
  } finally {
    over.abort();
    if (runtime.containers.get(id)?.state !== "running") told.delete(id);
  }
};
