import { stopCluster } from "./cluster.ts";
import { readRecord } from "./record.ts";
import { sharedDescription } from "./shared.ts";

/**
 * vitest's globalSetup of the project cluster. It starts nothing: a run that needs no cluster pays for none. What
 * the run started is taken down after it; a cluster that was there before, someone works with.
 */
export default async (): Promise<() => Promise<void>> => {
  const before = (await readRecord(sharedDescription.name)) !== undefined;
  return async () => {
    if (!before) await stopCluster(sharedDescription.name);
  };
};
