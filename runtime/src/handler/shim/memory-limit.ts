import { setTimeout as sleep } from "node:timers/promises";

/** How often a container with a limit is looked at. */
const intervalMs = 1_000;
/** Cache that gVisor holds for a moment counts as use, and goes by itself: one look over the limit is none. */
const looksOver = 2;

export type Limited = {
  /** Bytes; 0 without a limit. May change while it runs. */
  limit(): number;
  /** What the whole sandbox uses: cheap to know, and never less than what one of its containers does. */
  sandboxUsage(): bigint | undefined;
  /** What the container uses. */
  usage(signal: AbortSignal): Promise<number>;
  /** Ends it for want of memory. */
  kill(): Promise<void>;
  ended: Promise<void>;
};

/**
 * Holds a container of gVisor to its memory limit. The kernel of the node holds the pod as a whole, and gVisor's own
 * counts what each container uses but holds none of them to anything, so somebody has to look. Settles when the
 * container ended or `signal` said so.
 */
export const holdMemoryLimit = async (
  container: Limited,
  signal: AbortSignal,
  every = intervalMs,
): Promise<void> => {
  let ended = false;
  const end = container.ended.then(() => {
    ended = true;
  });
  let over = 0;
  while (!ended && !signal.aborted) {
    await Promise.race([end, sleep(every, undefined, { signal, ref: false }).catch(() => {})]);
    if (ended || signal.aborted) return;
    const limit = container.limit();
    const most = container.sandboxUsage();
    if (limit === 0 || (most !== undefined && most <= BigInt(limit))) {
      over = 0;
      continue;
    }
    // A sandbox that is busy or ending does not answer; the next look will tell.
    const used = await container
      .usage(AbortSignal.any([signal, AbortSignal.timeout(5_000)]))
      .catch(() => undefined);
    over = used !== undefined && used > limit ? over + 1 : 0;
    if (over < looksOver) continue;
    await container.kill();
    return;
  }
};
