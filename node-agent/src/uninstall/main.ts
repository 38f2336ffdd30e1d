import { setTimeout as sleep } from "node:timers/promises";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { loadConfig } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { nodeRuntimes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Command } from "commander";
import { pino } from "pino";
import { stillThere, whatToDo } from "./remaining.ts";

/**
 * Runs before the chart's objects go (Helm's pre-delete hook): deletes every RuntimeProfile, and waits until the
 * operator has let them go and every agent has made its node what it was. It has no right but these. Pods that
 * use a profile hold it up; after the deadline it fails and names them, and nothing of the chart is deleted.
 */

const program = new Command("bulkhead-uninstall")
  .description("Takes Bulkhead off all nodes before the chart is uninstalled")
  .option("--kubeconfig <file>", "the pod's service account when left out")
  .option("--timeout <seconds>", "give up after", "300")
  .parse();
const options = program.opts<{ kubeconfig?: string; timeout: string }>();
const log = pino({ base: { program: "uninstall" } });
const stop = new AbortController();
for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort(new Error(name)));

async function all<T extends KubeObject>(
  client: Client,
  resource: Resource<T>,
  signal: AbortSignal,
): Promise<T[]> {
  const items: T[] = [];
  let page: string | undefined;
  do {
    const answer = await client
      .list(resource, { limit: 500, signal, ...(page === undefined ? {} : { continue: page }) })
      .catch((error: unknown) => {
        // The definitions are gone already: nothing can be left.
        if (hasCode(error, "not-found")) return { items: [], resourceVersion: "" };
        throw error;
      });
    items.push(...answer.items);
    page = "continue" in answer ? answer.continue : undefined;
  } while (page !== undefined && page !== "");
  return items;
}

async function main(signal: AbortSignal): Promise<void> {
  const client = createClient({
    config: await loadConfig(options.kubeconfig),
    userAgent: "bulkhead-uninstall",
  });
  for (const profile of await all(client, runtimeProfiles, signal)) {
    await client.delete(runtimeProfiles, profile.metadata.name, { signal }).catch((error: unknown) => {
      if (!hasCode(error, "not-found")) throw error;
    });
    log.info({ profile: profile.metadata.name }, "profile deleted");
  }
  const deadline = Date.now() + Number(options.timeout) * 1000;
  for (let said = ""; ; ) {
    const profiles = await all(client, runtimeProfiles, signal);
    const nodes: NodeRuntime[] = await all(client, nodeRuntimes, signal);
    const left = stillThere(profiles, nodes);
    if (left.length === 0) break;
    const words = left.slice(0, 20).join("; ");
    if (Date.now() > deadline) {
      throw new RuntimeError(
        "failed-precondition",
        `Cannot take Bulkhead off the nodes: ${words}${whatToDo(nodes)}`,
      );
    }
    if (words !== said) log.info({ left }, "waiting");
    said = words;
    await sleep(1000, undefined, { signal });
  }
  log.info("every node is what it was");
  await client.close();
}

try {
  await main(stop.signal);
} catch (error) {
  log.fatal({ err: messageOf(error) }, "uninstall failed");
  process.exitCode = 1;
}
