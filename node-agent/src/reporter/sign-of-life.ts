import { fieldManager, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { leases, microTime } from "@bulkhead/lib/kube/lease.ts";
import { type Clock, systemClock } from "@bulkhead/lib/std/clock.ts";
import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import { heartbeatMs, isDue } from "./status.ts";

/** Says by a Lease that the node's agent lives: a NodeRuntime of twenty profiles has seventy times its size. */
export type Signs = {
  /** Renews the Lease when that is due. True when it stands; false: the sign of life belongs into the status. */
  renew(runtime: NodeRuntime, signal: AbortSignal): Promise<boolean>;
};

export const createSigns = (
  client: Pick<Client, "create" | "patch">,
  log: Pick<Logger, "warn">,
  clock: Pick<Clock, "now"> = systemClock,
): Signs => {
  /** The Lease that stands, and since when. */
  let signed: { key: string; at: number } | undefined;
  let refused = false;

  const write = async (runtime: NodeRuntime, namespace: string, signal: AbortSignal): Promise<void> => {
    const { name, uid = "" } = runtime.metadata;
    const metadata = {
      labels: { [labels.managedBy]: fieldManager.agent },
      // With the NodeRuntime it goes.
      ownerReferences: [{ apiVersion: runtime.apiVersion, kind: runtime.kind, name, uid }],
    };
    const spec = { holderIdentity: name, renewTime: microTime(clock.now()) };
    const how = { fieldManager: fieldManager.agent, signal };
    try {
      await client.patch(leases, name, { metadata, spec }, { namespace, ...how });
    } catch (error) {
      if (!hasCode(error, "not-found")) throw error;
      await client.create(leases, { metadata: { name, namespace, ...metadata }, spec }, how);
    }
  };

  return {
    renew: async (runtime, signal) => {
      const namespace = runtime.metadata.annotations?.[labels.leases];
      // No operator reads it, or one of before Leases.
      if (namespace === undefined) return false;
      const key = `${namespace}/${runtime.metadata.uid}`;
      if (signed?.key === key && !isDue(signed.at, heartbeatMs, clock.now())) return true;
      try {
        const at = clock.now();
        await write(runtime, namespace, signal);
        signed = { key, at };
        refused = false;
        return true;
      } catch (error) {
        signal.throwIfAborted();
        // Rights of an older chart, or a node that has the name of another's Lease: said once.
        if (!refused) log.warn({ err: messageOf(error) }, "Lease not renewed: the status is, instead");
        refused = true;
        return false;
      }
    },
  };
};
