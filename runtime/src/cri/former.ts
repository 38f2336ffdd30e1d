import { setTimeout as sleep } from "node:timers/promises";
import type { Runtime } from "./runtime.ts";

/** How long the first pods of a boot wait for addresses of those before it, and pauses until what is left is tried again. */
const [formerMs, formerPauses] = [15_000, [10_000, 600_000]] as const;

/** What tells CNI's plugins of pods that are gone, until they have taken back what those had. */
export type Former = {
  /** Once, as far as they answer in time; what is left is tried again. */
  release(): Promise<void>;
  /** Tries again later, until nothing is left. */
  again(): void;
  /** Plugins have taken something back: what is left is tried soon. */
  hurry(): void;
};

/**
 * Plugins are told of pods that ended with an earlier boot, before new ones come, and of pods whose ADD failed and whose
 * DEL did, too.
 */
export const createFormer = (
  { network, pods, log }: Pick<Runtime, "network" | "pods" | "log">,
  stop: AbortSignal,
): Former => {
  let isRepeating = false;
  /** When the next try is, in performance.now(). */
  let due = 0;
  const [first, longest] = formerPauses;

  const release = (): Promise<number> => {
    const holding = new Set(pods.recorded());
    for (const { id, held } of pods.list()) if (held.network === undefined) holding.delete(id);
    return network
      .detachFormer(holding, AbortSignal.any([stop, AbortSignal.timeout(formerMs)]))
      .catch((err) => {
        log.warn({ err }, "attachments cannot be read");
        return 0;
      });
  };
  const repeat = async (): Promise<void> => {
    for (let pause: number = first; ; pause = Math.min(2 * pause, longest)) {
      due = performance.now() + pause;
      // Looked at now and then: it may be brought forward.
      for (let left = pause; left > 0; left = due - performance.now()) {
        await sleep(Math.min(left, first), undefined, { ref: false, signal: stop }).catch(() => {});
        if (stop.aborted) return;
      }
      const left = await release();
      if (left === 0) return;
      log.warn({ pods: left }, "plugins do not take back what pods that are gone had");
    }
  };
  const again = (): void => {
    if (isRepeating) return;
    isRepeating = true;
    void repeat().finally(() => {
      isRepeating = false;
    });
  };
  return {
    async release() {
      if ((await release()) > 0) again();
    },
    again,
    hurry() {
      due = Math.min(due, performance.now() + first);
    },
  };
};
