import { create, toBinary } from "@bufbuild/protobuf";
import { AnySchema } from "@bufbuild/protobuf/wkt";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { Sandbox } from "@bulkhead/lib/gen/shim_sandbox_pb.js";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { createTtrpcClient, type TtrpcClient } from "@bulkhead/lib/ttrpc/client.ts";
import type { SandboxLaunch, Usage } from "../handler.ts";
import { inNamespace, type ShimTransport } from "./connection.ts";
import { usageOf } from "./stats.ts";

/**
 * The sandbox API of a shim (containerd.runtime.sandbox.v1): the shim itself makes, watches and ends the pod, and no
 * container has to hold it. Containers are made by the task API as ever.
 */
export type SandboxClient = TtrpcClient<typeof Sandbox>;

export const sandboxClient = (connection: ShimTransport): SandboxClient =>
  createTtrpcClient(Sandbox, connection, { metadata: inNamespace });

type Deadlines = { createMs: number; startMs: number };

/** Makes and starts the pod; returns the process that the shim names as its own. */
export async function startSandbox(
  client: SandboxClient,
  launch: SandboxLaunch,
  bundle: string,
  { createMs, startMs }: Deadlines,
  signal: AbortSignal,
): Promise<number> {
  const sandboxId = launch.id;
  await client.createSandbox(
    {
      sandboxId,
      bundlePath: bundle,
      netnsPath: launch.namespaces.net ?? "",
      annotations: launch.annotations,
      options: create(AnySchema, {
        typeUrl: PodSandboxConfigSchema.typeName,
        value: toBinary(PodSandboxConfigSchema, launch.config ?? create(PodSandboxConfigSchema)),
      }),
    },
    { signal, timeoutMs: createMs },
  );
  const { pid } = await client.startSandbox({ sandboxId }, { signal, timeoutMs: startMs });
  return pid;
}

/** Words for a sandbox that has ended: containerd's own, and Kata's. */
const ended = /^(sandbox_notready|stopped|exited)$/i;

export async function sandboxRuns(client: SandboxClient, id: string, signal: AbortSignal): Promise<boolean> {
  try {
    const { state } = await client.sandboxStatus({ sandboxId: id }, { signal, timeoutMs: 10_000 });
    return !ended.test(state);
  } catch (error) {
    if (hasCode(error, "not-found")) return false;
    throw error;
  }
}

/** What the sandbox says that it uses; undefined when it does not say. */
export async function sandboxUsage(
  client: SandboxClient,
  id: string,
  signal: AbortSignal,
  timestamp: bigint,
): Promise<Usage | undefined> {
  try {
    const { metrics } = await client.sandboxMetrics({ sandboxId: id }, { signal, timeoutMs: 5_000 });
    return metrics?.data && usageOf(metrics.data, timestamp);
  } catch (error) {
    if (hasCode(error, "unimplemented") || hasCode(error, "not-found")) return undefined;
    throw error;
  }
}
