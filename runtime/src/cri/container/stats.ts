import { create } from "@bufbuild/protobuf";
import {
  type ContainerStats,
  ContainerStatsResponseSchema,
  ContainerStatsSchema,
  ListContainerStatsResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { isVisible, type Visible } from "../../container/state.ts";
import type { Usage } from "../../handler/handler.ts";
import { writableOf } from "../disk.ts";
import { hasId, hasLabels, isShown } from "../filter.ts";
import { containerRef, now, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

/** ContainerStats. */
export const containerStats =
  (runtime: Runtime): RuntimeMethods["containerStats"] =>
  async (request, signal) => {
    const stats = await statsOf(runtime, requireVisible(runtime, request.containerId), signal);
    if (stats === undefined)
      throw new RuntimeError(
        "not-found",
        `Container "${request.containerId}" has no statistics: it does not run`,
      );
    return create(ContainerStatsResponseSchema, { stats });
  };

/** ListContainerStats: those that run. One that vanishes meanwhile is left out. */
export const listContainerStats =
  (runtime: Runtime): RuntimeMethods["listContainerStats"] =>
  async ({ filter }, signal) => {
    const stats = await Promise.all(
      runtime.containers
        .list()
        .filter(isVisible)
        .filter(
          (container) =>
            container.state === "running" &&
            isShown(runtime.pods.get(container.podId)?.config, filter) &&
            hasId(container.id, filter?.id) &&
            hasId(container.podId, filter?.podSandboxId) &&
            hasLabels(container.config.labels, filter?.labelSelector),
        )
        .map((container) => statsOf(runtime, container, signal).catch(() => undefined)),
    );
    return create(ListContainerStatsResponseSchema, { stats: stats.filter((each) => each !== undefined) });
  };

/** The figures of one container; undefined when it does not run. */
export const statsOf = async (
  runtime: Runtime,
  container: Visible,
  signal: AbortSignal,
): Promise<ContainerStats | undefined> => {
  if (container.state === "exited") return undefined;
  const pod = runtime.pods.require(container.podId);
  const handler = runtime.handlers.running(pod.handler);
  const [{ usage, nanoCores }, writable] = await Promise.all([
    runtime.sampler.of(container.id, () => handler.stats(containerRef(runtime, pod, container), signal)),
    writableOf(runtime, pod.handler, container.id).catch(() => ({ bytes: 0n, inodes: 0n })),
  ]);
  return create(ContainerStatsSchema, {
    attributes: {
      id: container.id,
      ...(container.config.metadata && { metadata: container.config.metadata }),
      labels: container.config.labels,
      annotations: container.config.annotations,
    },
    ...(usage && usageMessages(usage, nanoCores)),
    writableLayer: {
      timestamp: now(),
      fsId: { mountpoint: runtime.snapshotter.disks.containers },
      usedBytes: { value: writable.bytes },
      inodesUsed: { value: writable.inodes },
    },
  });
};

/** CpuUsage and MemoryUsage of what a container or a pod used. */
export const usageMessages = (usage: Usage, nanoCores: bigint) => ({
  cpu: {
    timestamp: usage.timestamp,
    usageCoreNanoSeconds: { value: usage.cpuNanos },
    usageNanoCores: { value: nanoCores },
  },
  memory: {
    timestamp: usage.timestamp,
    workingSetBytes: { value: usage.memoryWorkingSet },
    usageBytes: { value: usage.memoryUsage },
    rssBytes: { value: usage.memoryRss },
    pageFaults: { value: usage.pageFaults },
    majorPageFaults: { value: usage.majorPageFaults },
    availableBytes: { value: available(usage.memoryLimit, usage.memoryWorkingSet) },
  },
});

/** 0 without a limit, as cAdvisor says it. */
const available = (limit: bigint, workingSet: bigint): bigint =>
  limit > workingSet ? limit - workingSet : 0n;
