import { setTimeout as sleep } from "node:timers/promises";
import { customResourceDefinitions as definitions } from "@bulkhead/lib/api/crd.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { customResourceDefinitions, nodeRuntimes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";

/** Puts Bulkhead's CustomResourceDefinitions on a server and waits until it serves them. */
export const installCrds = async (client: Client): Promise<void> => {
  for (const definition of Object.values(definitions)) {
    await client.apply(customResourceDefinitions, definition, { fieldManager: "test", force: true });
  }
  const deadline = Date.now() + 30_000;
  for (;;) {
    try {
      await client.list(runtimeProfiles);
      await client.list(nodeRuntimes);
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(100);
    }
  }
};
