import type { Client } from "@bulkhead/lib/kube/client.ts";
import { leases } from "@bulkhead/lib/kube/lease.ts";
import { nodeRuntimes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { type Clock, systemClock } from "@bulkhead/lib/std/clock.ts";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * What `helm test` asks: the cluster serves Bulkhead's resources, and an operator works: it renews its Lease while we
 * look, by our own clock. Errors: failed-precondition, with what is missing.
 */
export const check = async (
  client: Pick<Client, "list" | "get">,
  lease: { namespace: string; name: string },
  options: { clock?: Clock; withinMs?: number; signal?: AbortSignal } = {},
): Promise<{ profiles: number; holder: string }> => {
  const { clock = systemClock, withinMs = 60_000 } = options;
  const wait = options.signal ? { signal: options.signal } : {};
  const profiles = await client.list(runtimeProfiles, wait).catch((error: unknown) => {
    if (!hasCode(error, "not-found")) throw error;
    throw new RuntimeError(
      "failed-precondition",
      "Cannot find the CustomResourceDefinitions: apply the chart's crds/",
    );
  });
  await client.list(nodeRuntimes, { limit: 1, ...wait });
  const deadline = clock.now() + withinMs;
  let first: string | undefined;
  for (;;) {
    const found = await client
      .get(leases, lease.name, { namespace: lease.namespace, ...wait })
      .catch((error: unknown) => {
        if (!hasCode(error, "not-found")) throw error;
        return undefined;
      });
    const { holderIdentity, renewTime } = found?.spec ?? {};
    if (holderIdentity && renewTime) {
      if (first !== undefined && renewTime !== first)
        return { profiles: profiles.items.length, holder: holderIdentity };
      first ??= renewTime;
    }
    if (clock.now() > deadline)
      throw new RuntimeError(
        "failed-precondition",
        holderIdentity
          ? `Cannot see the operator work: "${holderIdentity}" has not renewed Lease "${lease.namespace}/${lease.name}" for ${withinMs / 1000} s`
          : `Cannot see the operator work: nobody holds Lease "${lease.namespace}/${lease.name}"`,
      );
    await clock.sleep(1000, options.signal);
  }
};
