import { stopCluster } from "../cluster/cluster.ts";
import { readRecord } from "../cluster/record.ts";
import { description } from "./life.ts";

/** vitest's globalSetup of the project lifecycle: what the run started goes after it; what was there stays. */
export default async (): Promise<() => Promise<void>> => {
  const before = (await readRecord(description.name)) !== undefined;
  return async () => {
    if (!before) await stopCluster(description.name);
  };
};
