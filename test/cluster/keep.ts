import { stopCluster } from "./cluster.ts";
import { listRecords, readRecord } from "./record.ts";

/**
 * What a run does about a cluster by its name, as vitest's globalSetup: one that was there before, someone works with,
 * and it stays; one that the run started goes after it. In CI nobody works: there any cluster is what a run that was cut
 * off left behind, half of its processes ended, and goes first.
 */
export const keepOthers = async (name: string): Promise<() => Promise<void>> => {
  if (process.env.CI) for (const { description } of await listRecords()) await stopCluster(description.name);
  const before = (await readRecord(name)) !== undefined;
  return async () => {
    if (!before) await stopCluster(name);
  };
};
