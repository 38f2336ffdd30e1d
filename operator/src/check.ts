import type { Client } from "@bulkhead/lib/kube/client.ts";
import { operatorAtWork } from "@bulkhead/lib/kube/operator-at-work.ts";
import { nodeRuntimes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import type { Clock } from "@bulkhead/lib/std/clock.ts";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * What `helm test` asks: the cluster serves Bulkhead's resources, and an operator works. Errors: failed-precondition, with
 * what is missing.
 */
export const check = async (
  client: Pick<Client, "list" | "get">,
  namespace: string,
  options: { clock?: Clock; withinMs?: number; signal?: AbortSignal } = {},
): Promise<{ profiles: number; holder: string }> => {
  const { withinMs = 60_000 } = options;
  const wait = options.signal ? { signal: options.signal } : {};
  const profiles = await client.list(runtimeProfiles, wait).catch((error: unknown) => {
    if (!hasCode(error, "not-found")) throw error;
    throw new RuntimeError(
      "failed-precondition",
      "Cannot find the CustomResourceDefinitions: apply the chart's crds/",
    );
  });
  await client.list(nodeRuntimes, { limit: 1, ...wait });
  const holder = await operatorAtWork(client, namespace, { ...options, withinMs });
  return { profiles: profiles.items.length, holder };
};
