import { create } from "@bufbuild/protobuf";
import type { CriServices } from "@bulkhead/lib/cri/client.ts";
import {
  StreamContainerStatsResponseSchema,
  StreamContainersResponseSchema,
  StreamImagesResponseSchema,
  StreamPodSandboxesResponseSchema,
  StreamPodSandboxMetricsResponseSchema,
  StreamPodSandboxStatsResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { attach } from "./container/attach.ts";
import { checkpointContainer } from "./container/checkpoint.ts";
import { createContainer } from "./container/create.ts";
import { exec } from "./container/exec.ts";
import { execSync } from "./container/exec-sync.ts";
import { listContainers } from "./container/list.ts";
import { removeContainer } from "./container/remove.ts";
import { reopenContainerLog } from "./container/reopen-log.ts";
import { startContainer } from "./container/start.ts";
import { containerStats, listContainerStats } from "./container/stats.ts";
import { containerStatus } from "./container/status.ts";
import { stopContainer } from "./container/stop.ts";
import { updateContainerResources } from "./container/update-resources.ts";
import { imageFsInfo } from "./image/fs-info.ts";
import { listImages } from "./image/list.ts";
import { pullImage } from "./image/pull.ts";
import { removeImage } from "./image/remove.ts";
import { imageStatus } from "./image/status.ts";
import { getContainerEvents } from "./node/events.ts";
import { runtimeConfig } from "./node/runtime-config.ts";
import { status } from "./node/status.ts";
import { updateRuntimeConfig } from "./node/update-runtime-config.ts";
import { version } from "./node/version.ts";
import type { Runtime } from "./runtime.ts";
import { checkpointPod } from "./sandbox/checkpoint.ts";
import { listPodSandbox } from "./sandbox/list.ts";
import { listMetricDescriptors, listPodSandboxMetrics } from "./sandbox/metrics.ts";
import { portForward } from "./sandbox/port-forward.ts";
import { removePodSandbox } from "./sandbox/remove.ts";
import { restorePod } from "./sandbox/restore.ts";
import { runPodSandbox } from "./sandbox/run.ts";
import { listPodSandboxStats, podSandboxStats } from "./sandbox/stats.ts";
import { podSandboxStatus } from "./sandbox/status.ts";
import { stopPodSandbox } from "./sandbox/stop.ts";
import { updatePodSandboxResources } from "./sandbox/update-resources.ts";

/** A list as a stream: one item per message, then the end. */
const streamed = <Request, List, Item, Answer>(
  list: (request: Request, signal: AbortSignal) => Promise<List>,
  itemsOf: (list: List) => Item[],
  wrap: (item: Item) => Answer,
) =>
  async function* (request: Request, signal: AbortSignal): AsyncGenerator<Answer> {
    for (const item of itemsOf(await list(request, signal))) yield wrap(item);
  };

/** All of CRI v1, one function per RPC. What stands in front (a delegate) wraps this table. */
export const criServices = (runtime: Runtime): CriServices => {
  const lists = {
    listPodSandbox: listPodSandbox(runtime),
    listContainers: listContainers(runtime),
    listContainerStats: listContainerStats(runtime),
    listPodSandboxStats: listPodSandboxStats(runtime),
    listPodSandboxMetrics: listPodSandboxMetrics(runtime),
  };
  const images = listImages(runtime);
  return {
    runtime: {
      version: version(runtime),
      status: status(runtime),
      runtimeConfig: runtimeConfig(runtime),
      updateRuntimeConfig: updateRuntimeConfig(),
      getContainerEvents: getContainerEvents(runtime),

      runPodSandbox: runPodSandbox(runtime),
      stopPodSandbox: stopPodSandbox(runtime),
      removePodSandbox: removePodSandbox(runtime),
      podSandboxStatus: podSandboxStatus(runtime),
      podSandboxStats: podSandboxStats(runtime),
      portForward: portForward(runtime),
      updatePodSandboxResources: updatePodSandboxResources(runtime),

      createContainer: createContainer(runtime),
      startContainer: startContainer(runtime),
      stopContainer: stopContainer(runtime),
      removeContainer: removeContainer(runtime),
      containerStatus: containerStatus(runtime),
      containerStats: containerStats(runtime),
      updateContainerResources: updateContainerResources(runtime),
      reopenContainerLog: reopenContainerLog(runtime),
      execSync: execSync(runtime),
      exec: exec(runtime),
      attach: attach(runtime),

      checkpointContainer: checkpointContainer(runtime),
      checkpointPod: checkpointPod(runtime),
      restorePod: restorePod(runtime),

      ...lists,
      listMetricDescriptors: listMetricDescriptors(),
      streamPodSandboxes: streamed(
        ({ filter }, signal) =>
          lists.listPodSandbox(
            { $typeName: "runtime.v1.ListPodSandboxRequest", ...(filter && { filter }) },
            signal,
          ),
        ({ items }) => items,
        (item) => create(StreamPodSandboxesResponseSchema, { podSandboxes: [item] }),
      ),
      streamContainers: streamed(
        ({ filter }, signal) =>
          lists.listContainers(
            { $typeName: "runtime.v1.ListContainersRequest", ...(filter && { filter }) },
            signal,
          ),
        ({ containers }) => containers,
        (item) => create(StreamContainersResponseSchema, { containers: [item] }),
      ),
      streamContainerStats: streamed(
        ({ filter }, signal) =>
          lists.listContainerStats(
            { $typeName: "runtime.v1.ListContainerStatsRequest", ...(filter && { filter }) },
            signal,
          ),
        ({ stats }) => stats,
        (item) => create(StreamContainerStatsResponseSchema, { containerStats: [item] }),
      ),
      streamPodSandboxStats: streamed(
        ({ filter }, signal) =>
          lists.listPodSandboxStats(
            { $typeName: "runtime.v1.ListPodSandboxStatsRequest", ...(filter && { filter }) },
            signal,
          ),
        ({ stats }) => stats,
        (item) => create(StreamPodSandboxStatsResponseSchema, { podSandboxStats: [item] }),
      ),
      streamPodSandboxMetrics: streamed(
        (_request, signal) =>
          lists.listPodSandboxMetrics({ $typeName: "runtime.v1.ListPodSandboxMetricsRequest" }, signal),
        ({ podMetrics }) => podMetrics,
        (item) => create(StreamPodSandboxMetricsResponseSchema, { podSandboxMetrics: [item] }),
      ),
    },
    image: {
      listImages: images,
      streamImages: streamed(
        ({ filter }, signal) =>
          images({ $typeName: "runtime.v1.ListImagesRequest", ...(filter && { filter }) }, signal),
        (list) => list.images,
        (item) => create(StreamImagesResponseSchema, { images: [item] }),
      ),
      imageStatus: imageStatus(runtime),
      pullImage: pullImage(runtime),
      removeImage: removeImage(runtime),
      imageFsInfo: imageFsInfo(runtime),
    },
  };
};
