import type { StatusResponse } from "@bulkhead/lib/gen/cri_pb.js";
import { z } from "zod";

const Runtimes = z.object({ containerd: z.object({ runtimes: z.record(z.string(), z.unknown()) }) });

/**
 * The handlers that an engine offers, of its verbose Status: named there since CRI 1.30, before that in containerd's
 * configuration. undefined: it does not say.
 */
export function offered({ runtimeHandlers, info }: StatusResponse): Set<string> | undefined {
  const names = runtimeHandlers.map(({ name }) => name).filter((name) => name !== "");
  if (names.length > 0) return new Set(names);
  try {
    const { containerd } = Runtimes.parse(JSON.parse(info.config ?? ""));
    return new Set(Object.keys(containerd.runtimes));
  } catch {
    return undefined;
  }
}
