import { create } from "@bufbuild/protobuf";
import {
  ListPodSandboxStatsResponseSchema,
  type PodSandboxStats,
  PodSandboxStatsResponseSchema,
  PodSandboxStatsSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { isVisible, type Visible } from "../../container/state.ts";
import type { Usage } from "../../handler/handler.ts";
import type { Pod } from "../../pod/state.ts";
import { podNamespaces } from "../../spec/namespaces.ts";
import { usageTogether } from "../../stats/usage.ts";
import { pidIn } from "../container/create.ts";
import { statsOf, usageMessages } from "../container/stats.ts";
import { hasId, hasLabels, isShown } from "../filter.ts";
import { containerRef, now, type Runtime, type RuntimeMethods, sandboxRef } from "../runtime.ts";
import { readInterfaces } from "../sampler.ts";

/** PodSandboxStats. */
export const podSandboxStats =
  (runtime: Runtime): RuntimeMethods["podSandboxStats"] =>
  async (request, signal) => {
    const pod = runtime.pods.require(request.podSandboxId);
    if (pod.state !== "ready")
      throw new RuntimeError("not-found", `Pod sandbox "${pod.id}" has no statistics: it is ${pod.state}`);
    return create(PodSandboxStatsResponseSchema, { stats: await podStatsOf(runtime, pod, signal) });
  };

/** ListPodSandboxStats: those that are ready. */
export const listPodSandboxStats =
  (runtime: Runtime): RuntimeMethods["listPodSandboxStats"] =>
  async ({ filter }, signal) => {
    const stats = await Promise.all(
      runtime.pods
        .list()
        .filter(
          (pod) =>
            pod.state === "ready" &&
            isShown(pod.config, filter) &&
            hasId(pod.id, filter?.id) &&
            hasLabels(pod.config.labels, filter?.labelSelector),
        )
        .map((pod) => podStatsOf(runtime, pod, signal).catch(() => undefined)),
    );
    return create(ListPodSandboxStatsResponseSchema, { stats: stats.filter((each) => each !== undefined) });
  };

const podStatsOf = async (runtime: Runtime, pod: Pod, signal: AbortSignal): Promise<PodSandboxStats> => {
  const containers = runtime.containers
    .list()
    .filter((container) => container.podId === pod.id)
    .filter(isVisible)
    .filter((container) => container.state === "running");
  const [{ usage, nanoCores }, stats, interfaces] = await Promise.all([
    runtime.sampler.of(pod.id, () => podUsage(runtime, pod, containers, signal)),
    Promise.all(containers.map((container) => statsOf(runtime, container, signal).catch(() => undefined))),
    podNamespaces(pod.config).net === "host" ? [] : interfacesOf(pod, containers),
  ]);
  const messages = interfaces.map((each) => ({
    name: each.name,
    rxBytes: { value: each.rxBytes },
    rxErrors: { value: each.rxErrors },
    txBytes: { value: each.txBytes },
    txErrors: { value: each.txErrors },
  }));
  const [first] = messages;
  return create(PodSandboxStatsSchema, {
    attributes: {
      id: pod.id,
      ...(pod.config.metadata && { metadata: pod.config.metadata }),
      labels: pod.config.labels,
      annotations: pod.config.annotations,
    },
    linux: {
      ...(usage && {
        ...usageMessages(usage, nanoCores),
        process: { timestamp: usage.timestamp, processCount: { value: usage.pids } },
      }),
      ...(first && { network: { timestamp: now(), defaultInterface: first, interfaces: messages.slice(1) } }),
      containers: stats.filter((each) => each !== undefined),
    },
  });
};

/** What a pod used, by its cgroup or its sandbox; where it has no cgroup of its own, what its containers use together. */
export const podUsage = async (
  runtime: Runtime,
  pod: Pod,
  containers: readonly Visible[],
  signal: AbortSignal,
): Promise<Usage | undefined> => {
  const handler = runtime.handlers.running(pod.handler);
  const said = await handler.sandboxStats(sandboxRef(runtime, pod), signal);
  if (said !== undefined || handler.kind !== "oci") return said;
  const samples = await Promise.all(
    containers.map((each) =>
      runtime.sampler.of(each.id, () => handler.stats(containerRef(runtime, pod, each), signal)),
    ),
  );
  return usageTogether(samples.map(({ usage }) => usage).filter((usage) => usage !== undefined));
};

/** As a process of the pod sees them: any one will do. */
export const interfacesOf = async (
  pod: Pod,
  containers: readonly { handlerState: Record<string, unknown> }[],
): Promise<Awaited<ReturnType<typeof readInterfaces>>> => {
  const pid =
    pidIn(pod.held.sandbox?.state ?? {}) ??
    containers.map((each) => pidIn(each.handlerState)).find((each) => each);
  return pid === undefined ? [] : await readInterfaces(pid);
};
