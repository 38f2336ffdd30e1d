import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { RuntimeMethods } from "../runtime.ts";

/** CheckpointPod and RestorePod say that they cannot, and why. */
const refuse = (what: string) => async (): Promise<never> => {
  throw new RuntimeError(
    "unimplemented",
    `Cannot ${what}: no handler of this version freezes a whole pod, or makes one from an archive`,
  );
};

export const checkpointPod: RuntimeMethods["checkpointPod"] = refuse("checkpoint a pod");
export const restorePod: RuntimeMethods["restorePod"] = refuse("restore a pod");
