import { type Clock, systemClock } from "../std/clock.ts";
import { hasCode, RuntimeError } from "../std/errors.ts";
import type { Client } from "./client.ts";
import { leases, operatorLease } from "./lease.ts";

/**
 * Who renews the operator's Lease while we look, by our own clock: that it names a holder says nothing, for one that was
 * killed names itself still. Errors: failed-precondition, where nobody does within that time.
 */
export const operatorAtWork = async (
  client: Pick<Client, "get">,
  namespace: string,
  options: { clock?: Clock; withinMs: number; signal?: AbortSignal },
): Promise<string> => {
  const { clock = systemClock, withinMs } = options;
  const deadline = clock.now() + withinMs;
  let first: string | undefined;
  for (;;) {
    const found = await client
      .get(leases, operatorLease, { namespace, ...(options.signal ? { signal: options.signal } : {}) })
      .catch((error: unknown) => {
        if (!hasCode(error, "not-found")) throw error;
        return undefined;
      });
    const { holderIdentity, renewTime } = found?.spec ?? {};
    if (holderIdentity && renewTime) {
      if (first !== undefined && renewTime !== first) return holderIdentity;
      first ??= renewTime;
    }
    if (clock.now() > deadline)
      throw new RuntimeError(
        "failed-precondition",
        holderIdentity
          ? `Cannot see the operator work: "${holderIdentity}" has not renewed Lease "${namespace}/${operatorLease}" for ${withinMs / 1000} s`
          : `Cannot see the operator work: nobody holds Lease "${namespace}/${operatorLease}"`,
      );
    await clock.sleep(1000, options.signal);
  }
};
