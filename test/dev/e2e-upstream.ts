import { mkdir } from "node:fs/promises";
import { type Progress, startCluster, stopCluster } from "../cluster/cluster.ts";
import { readRecord } from "../cluster/record.ts";
import { summary } from "../e2e/report.ts";
import { type Engine, e2eDescription, runSpecs } from "../e2e/run.ts";
import { inCache } from "../tools/cache.ts";

/** What `./dev e2e-upstream` takes. */
export type E2eOptions = { engine: Engine; focus: string[]; skip: string[]; procs: number };

/**
 * Runs upstream's end-to-end specs on a cluster whose nodes stand on the given engine alone, and prints every one that
 * did not pass. A cluster that was there before is used and stays. Returns the exit code.
 */
export const e2eUpstream = async (
  { engine, focus, skip, procs }: E2eOptions,
  progress: Progress,
  print: (text: string) => void,
  signal: AbortSignal,
): Promise<number> => {
  const name = `e2e-${engine}`;
  await using undo = new AsyncDisposableStack();
  if ((await readRecord(name)) === undefined) undo.defer(async () => void (await stopCluster(name)));
  const cluster = await startCluster(e2eDescription(name, engine), { signal, progress });
  await mkdir(inCache("e2e"), { recursive: true });
  const report = inCache("e2e", `${engine}.json`);
  const results = await runSpecs(cluster, { focus, skip, procs, report }, signal);
  print(`\n${summary(results)}report: ${report}\n`);
  const failed = results.some(({ state }) => state === "failed");
  return failed || results.length === 0 ? 1 : 0;
};
