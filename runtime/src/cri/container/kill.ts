import { constants } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import type { Container } from "../../container/state.ts";
import { containerRef, findContainer, type Runtime } from "../runtime.ts";

const { SIGKILL } = constants.signals;
/** A process that forks faster than it is killed, or a lost kill: asked again. */
const again = 2_000;

const ended = (container: Container | undefined): boolean =>
  container === undefined || container.state === "exited" || container.state === "creating";

/** SIGKILL to everything in the container, until its exit was reported. */
export const killContainer = async (runtime: Runtime, id: string, signal: AbortSignal): Promise<void> => {
  for (;;) {
    const found = findContainer(runtime, id);
    if (found === undefined || ended(found.container)) return;
    const exit = runtime.exits.wait(id, signal);
    exit.catch(() => {});
    const sent = found.handler
      .kill(containerRef(runtime, found.pod, found.container), SIGKILL, true, signal)
      .catch((error: unknown) => {
        if (!hasCode(error, "not-found")) throw error;
      });
    // A container may have ended long before its runtime says that it was told to.
    await Promise.race([exit, sent.then(() => sleep(again, undefined, { ref: false }))]);
    signal.throwIfAborted();
  }
};
