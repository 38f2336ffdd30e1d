import { stopCluster } from "./cluster.ts";
import { readRecord } from "./record.ts";

/**
 * What a run does about a cluster by its name, as vitest's globalSetup: one that was there before, someone works with,
 * and it stays; one that the run started goes after it.
 */
export const keepOthers = async (name: string): Promise<() => Promise<void>> => {
  const before = (await readRecord(name)) !== undefined;
  return async () => {
    if (!before) await stopCluster(name);
  };
};
