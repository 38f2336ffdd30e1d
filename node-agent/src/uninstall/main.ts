import { setTimeout as sleep } from "node:timers/promises";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { loadConfig } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { operatorAtWork } from "@bulkhead/lib/kube/operator-at-work.ts";
import { nodeRuntimes, pods, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Command, Option } from "commander";
import { pino } from "pino";
import { holds, markedAlready, startOperator, stillThere, whatHolds, whatToDo } from "./remaining.ts";

/**
 * Runs before the chart's objects go (Helm's pre-delete hook): deletes every RuntimeProfile, and waits until the
 * operator has let them go and every agent has made its node what it was. It has no right but these, to list pods, and
 * to read the operator's Lease. A profile that was deleted is marked for good: so it looks first, and where pods use a
 * profile, a node is away, or no operator works, it fails with their names and changes nothing. What comes between is
 * waited for until the deadline; then it fails, too. Either way nothing of the chart is deleted, and it can be tried again.
 */

const program = new Command("bulkhead-uninstall")
  .description("Takes Bulkhead off all nodes before the chart is uninstalled")
  .option("--kubeconfig <file>", "the pod's service account when left out")
  .addOption(
    new Option("--namespace <name>", "namespace of the operator's Lease")
      .env("POD_NAMESPACE")
      .default("bulkhead-system"),
  )
  .option("--timeout <seconds>", "give up after", "300")
  .parse();
const options = program.opts<{ kubeconfig?: string; namespace: string; timeout: string }>();
const log = pino({ base: { program: "uninstall" } });
const stop = new AbortController();
for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => stop.abort(new Error(name)));

/** Of all objects those to keep: a cluster has more pods than this program has memory. */
async function all<T extends KubeObject>(
  client: Client,
  resource: Resource<T>,
  signal: AbortSignal,
  keep: (item: T) => boolean = () => true,
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
    items.push(...answer.items.filter(keep));
    page = "continue" in answer ? answer.continue : undefined;
  } while (page !== undefined && page !== "");
  return items;
}

/** Longer than another operator needs to take the Lease of one that was killed. */
const takeoverMs = 30_000;

const few = (words: string[]): string =>
  words.length <= 20 ? words.join("; ") : `${words.slice(0, 20).join("; ")} and ${words.length - 20} more`;

async function main(signal: AbortSignal): Promise<void> {
  const client = createClient({
    config: await loadConfig(options.kubeconfig),
    userAgent: "bulkhead-uninstall",
  });
  const profiles = await all(client, runtimeProfiles, signal);
  const using = profiles.length === 0 ? [] : await all(client, pods, signal, holds(profiles));
  const holding = whatHolds(profiles, using);
  if (holding.length > 0)
    throw new RuntimeError(
      "failed-precondition",
      `Nothing was changed${markedAlready(profiles)}: ${few(holding)}: ${whatToDo}`,
    );
  if (profiles.length > 0)
    await operatorAtWork(client, options.namespace, { withinMs: takeoverMs, signal }).catch(
      (error: unknown) => {
        if (!hasCode(error, "failed-precondition")) throw error;
        throw new RuntimeError(
          "failed-precondition",
          `Nothing was changed${markedAlready(profiles)}: ${messageOf(error)}: ${startOperator}`,
        );
      },
    );
  for (const profile of profiles) {
    await client.delete(runtimeProfiles, profile.metadata.name, { signal }).catch((error: unknown) => {
      if (!hasCode(error, "not-found")) throw error;
    });
    log.info({ profile: profile.metadata.name }, "profile deleted");
  }
  const deadline = Date.now() + Number(options.timeout) * 1000;
  for (let said = ""; ; ) {
    const profiles = await all(client, runtimeProfiles, signal);
    const left = stillThere(profiles, await all(client, nodeRuntimes, signal));
    if (left.length === 0) break;
    const words = few(left);
    if (Date.now() > deadline) {
      throw new RuntimeError(
        "failed-precondition",
        `Cannot take Bulkhead off the nodes${markedAlready(profiles)}: ${words}: ${whatToDo}`,
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
