import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { askSandbox } from "./runsc-control.ts";

/**
 * What gVisor counts in a sandbox, as `runsc export-metrics` prints it. Of names and help texts a sandbox says nothing
 * that counts, and of values only numbers: a pod that took over its sandbox can lie about itself, and do no more.
 */
export const runscMetrics = {
  fs_opens: { kind: "counter", help: "Files opened." },
  fs_reads: { kind: "counter", help: "Reads of files." },
  gofer_opens_host: { kind: "counter", help: "Files of the node opened through a gofer." },
  gofer_reads_host: { kind: "counter", help: "Reads of files of the node through a gofer." },
  netstack_tcp_current_established: { kind: "gauge", help: "TCP connections that are established." },
  netstack_tcp_current_open: { kind: "gauge", help: "TCP connections that are open in any state." },
  unimplemented_syscalls: { kind: "counter", help: "Calls of system calls that gVisor does not have." },
} as const satisfies Record<string, { kind: "counter" | "gauge"; help: string }>;
export type RunscMetric = keyof typeof runscMetrics;

/** pkg/prometheus Snapshot, as far as we ask. */
const Answer = z.discriminatedUnion("success", [
  z.object({
    success: z.literal(true),
    result: z.object({
      snapshot: z.object({
        data: z
          .array(
            z.object({
              metric: z.object({ name: z.string() }),
              val: z.object({ int: z.number().optional(), float: z.number().optional() }).optional(),
            }),
          )
          .nullish(),
      }),
    }),
  }),
  z.object({ success: z.literal(false), err: z.string() }),
]);

/** One value for each metric; those that gVisor breaks down, as by system call, are summed up. */
export const parseRunscMetrics = (text: string): Map<RunscMetric, number> => {
  const answer = Answer.parse(JSON.parse(text));
  if (!answer.success) throw new RuntimeError("unavailable", `The sandbox answered: ${answer.err}`);
  const values = new Map<RunscMetric, number>();
  for (const { metric, val } of answer.result.snapshot.data ?? []) {
    if (!Object.hasOwn(runscMetrics, metric.name)) continue;
    const name = metric.name as RunscMetric;
    const value = val?.int ?? val?.float ?? 0;
    if (Number.isFinite(value) && value >= 0) values.set(name, (values.get(name) ?? 0) + value);
  }
  return values;
};

/** Asks a sandbox for them. */
export const readRunscMetrics = async (
  root: string,
  sandboxId: string,
  signal: AbortSignal,
): Promise<Map<RunscMetric, number>> =>
  parseRunscMetrics(
    await askSandbox(
      root,
      sandboxId,
      "Metrics.Export",
      { only_metrics: `^(${Object.keys(runscMetrics).join("|")})$` },
      signal,
    ),
  );
