import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import type { Host } from "./host.ts";
import { type Facts, formerSocket, usesRuntime } from "./plan.ts";

export type Pod = { namespace: string; name: string };

/** Running pods by handler: as our runtime lists them, which are both engines', or else the node's own engine. */
export async function listPods(host: Host, facts: Facts, signal: AbortSignal): Promise<Map<string, Pod[]>> {
  const socket = usesRuntime(facts) ? paths.socket : formerSocket(facts);
  if (socket === undefined) return new Map();
  using cri = connectCri(host.at(host.real(socket)));
  const { items } = await cri.runtime.listPodSandbox(
    {},
    AbortSignal.any([signal, AbortSignal.timeout(10_000)]),
  );
  const pods = new Map<string, Pod[]>();
  for (const { state, runtimeHandler, metadata } of items) {
    if (metadata === undefined || metadata.namespace === canaryNamespace) continue;
    if (state !== PodSandboxState.SANDBOX_READY) continue;
    const { namespace, name } = metadata;
    pods.set(runtimeHandler, [...(pods.get(runtimeHandler) ?? []), { namespace, name }]);
  }
  return pods;
}
