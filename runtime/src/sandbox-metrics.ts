import { Counter, Gauge, Registry } from "prom-client";
import { type RunscMetric, readRunscMetrics, runscMetrics } from "./handler/shim/runsc-metrics.ts";

/** A pod in gVisor. `root` is where runsc keeps its sandbox. */
export type Sandbox = { id: string; root: string; handler: string; namespace: string; pod: string };

/** What one scrape asks at most, how many sandboxes at a time, and how long each and all of them may take. */
const maxSandboxes = 250;
const atOnce = 8;
const eachMs = 1_000;
const allMs = 5_000;

/**
 * gVisor's own metrics of the node's sandboxes by pod, in the text that Prometheus reads. As many series as pods and
 * metrics; pods over the bound, and those whose sandbox does not answer, are counted instead.
 */
export const sandboxMetrics = async (
  sandboxes: readonly Sandbox[],
  read: typeof readRunscMetrics = readRunscMetrics,
): Promise<string> => {
  if (sandboxes.length === 0) return "";
  const registry = new Registry();
  const registers = [registry];
  const labelNames = ["handler", "namespace", "pod"] as const;
  const kinds = { counter: Counter, gauge: Gauge };
  const metrics = Object.fromEntries(
    Object.entries(runscMetrics).map(([name, { kind, help }]) => [
      name,
      new kinds[kind]({ name: `runsc_${name}`, help: `gVisor: ${help}`, labelNames, registers }),
    ]),
  ) as Record<RunscMetric, Counter | Gauge>;
  const silent = new Gauge({
    name: "bulkhead_runtime_gvisor_silent_pods",
    help: "Pods in gVisor whose sandbox gave no metrics in time, or that are more than are asked in one scrape.",
    registers,
  });
  const asked = sandboxes.slice(0, maxSandboxes);
  silent.set(sandboxes.length - asked.length);
  const all = AbortSignal.timeout(allMs);
  const queue = asked.values();
  const worker = async (): Promise<void> => {
    for (const { id, root, handler, namespace, pod } of queue)
      try {
        const values = await read(root, id, AbortSignal.any([all, AbortSignal.timeout(eachMs)]));
        for (const [name, value] of values) metrics[name].inc({ handler, namespace, pod }, value);
      } catch {
        silent.inc();
      }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return await registry.metrics();
};
