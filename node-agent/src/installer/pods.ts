import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { type PodSandbox, PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";
import type { EngineKind } from "../engine/engine.ts";
import type { Host } from "./host.ts";
import { type Facts, formerSocket, usesRuntime } from "./plan.ts";

export type Pod = { namespace: string; name: string };

/** Running pods by handler: as our runtime lists them, which are both engines', or else the node's own engine. */
export async function listPods(host: Host, facts: Facts, signal: AbortSignal): Promise<Map<string, Pod[]>> {
  const socket = usesRuntime(facts) ? paths.socket : formerSocket(facts);
  if (socket === undefined) return new Map();
  using cri = connectCri(host.at(host.real(socket)));
  const items = await sandboxes(
    cri,
    facts.record.engine?.kind,
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

/**
 * All pods of a runtime. cri-dockerd tells a pod's handler only to whoever asks for that very pod, and CRI-O as an
 * annotation of what it gave the handler.
 */
export async function sandboxes(
  { runtime }: CriClient,
  engine: EngineKind | undefined,
  signal: AbortSignal,
): Promise<PodSandbox[]> {
  const { items } = await runtime.listPodSandbox({}, signal);
  if (engine !== "docker" && engine !== "crio") return items;
  const handlerOf = async (podSandboxId: string): Promise<string> => {
    const { status, info } = await runtime.podSandboxStatus({ podSandboxId, verbose: true }, signal);
    return status?.runtimeHandler || criosHandler(info.info ?? "");
  };
  return await Promise.all(
    items.map(async (item) => {
      if (item.runtimeHandler !== "") return item;
      try {
        return { ...item, runtimeHandler: await handlerOf(item.id) };
      } catch (error) {
        // It went meanwhile.
        if (hasCode(error, "not-found")) return item;
        throw error;
      }
    }),
  );
}

const Info = z.object({ runtimeSpec: z.object({ annotations: z.record(z.string(), z.string()) }) });

/** The handler of a pod by CRI-O's verbose status of it; "" where it does not say. */
export function criosHandler(info: string): string {
  try {
    return Info.parse(JSON.parse(info)).runtimeSpec.annotations["io.kubernetes.cri-o.RuntimeHandler"] ?? "";
  } catch {
    return "";
  }
}
