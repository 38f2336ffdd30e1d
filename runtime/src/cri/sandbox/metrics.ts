import { create } from "@bufbuild/protobuf";
import {
  ListMetricDescriptorsResponseSchema,
  ListPodSandboxMetricsResponseSchema,
  MetricType,
} from "@bulkhead/lib/gen/cri_pb.js";
import { isVisible, type Visible } from "../../container/state.ts";
import type { HandlerState, Usage } from "../../handler/handler.ts";
import type { Pod } from "../../pod/state.ts";
import { podNamespaces } from "../../spec/namespaces.ts";
import { processesOf, readMetrics } from "../../stats/cgroup.ts";
import { type CgroupLayout, type CgroupPaths, readLayout } from "../../stats/layout.ts";
import { commonLabels, metricCatalog, type Sample } from "../../stats/metric-catalog.ts";
import { networkSamples, processSamples, readDisk, readUlimits } from "../../stats/process-metrics.ts";
import { pidIn } from "../container/create.ts";
import { writableOf } from "../disk.ts";
import { containerRef, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { interfacesOf, podUsage } from "./stats.ts";

/** ListMetricDescriptors. */
export const listMetricDescriptors = (): RuntimeMethods["listMetricDescriptors"] => async () =>
  create(ListMetricDescriptorsResponseSchema, {
    descriptors: Object.entries(metricCatalog).map(([name, { help, labels = [] }]) => ({
      name,
      help,
      labelKeys: [...commonLabels, ...labels],
    })),
  });

/** ListPodSandboxMetrics: of the pods that are ready and their containers that run. */
export const listPodSandboxMetrics = (runtime: Runtime): RuntimeMethods["listPodSandboxMetrics"] => {
  const layout = readLayout();
  return async (_request, signal) => {
    const pods = runtime.pods.list().filter((pod) => pod.state === "ready" && pod.config.metadata);
    const podMetrics = await Promise.all(
      // One that goes meanwhile is left out.
      pods.map((pod) => podMetricsOf(runtime, layout, pod, signal).catch(() => undefined)),
    );
    return create(ListPodSandboxMetricsResponseSchema, {
      podMetrics: podMetrics.filter((each) => each !== undefined),
    });
  };
};

const podMetricsOf = async (runtime: Runtime, layout: CgroupLayout, pod: Pod, signal: AbortSignal) => {
  const containers = runtime.containers
    .list()
    .filter((container) => container.podId === pod.id)
    .filter(isVisible)
    .filter((container) => container.state === "running");
  const state = pod.held.sandbox?.state ?? {};
  const [{ usage }, rest, interfaces, containerMetrics] = await Promise.all([
    runtime.sampler.of(pod.id, () => podUsage(runtime, pod, containers, signal)),
    readMetrics(cgroupOf(state), layout),
    podNamespaces(pod.config).net === "host" ? [] : interfacesOf(pod, containers),
    Promise.all(
      containers.map((container) =>
        containerMetricsOf(runtime, layout, pod, container, signal).catch(() => undefined),
      ),
    ),
  ]);
  const labels = labelsOf(pod, { container: "", id: pod.id, image: "" });
  return {
    podSandboxId: pod.id,
    metrics: metricsOf([...usageSamples(usage), ...rest, ...networkSamples(interfaces)], labels),
    containerMetrics: containerMetrics.filter((each) => each !== undefined),
  };
};

const containerMetricsOf = async (
  runtime: Runtime,
  layout: CgroupLayout,
  pod: Pod,
  container: Visible,
  signal: AbortSignal,
) => {
  const handler = runtime.handlers.running(pod.handler);
  // Handlers whose containers are no processes of this machine know neither cgroup nor pid of theirs.
  const cgroup = cgroupOf(container.handlerState);
  const pid = Object.keys(cgroup).length === 0 ? undefined : pidIn(container.handlerState);
  const [{ usage }, rest, processes, ulimits, writable, disk] = await Promise.all([
    runtime.sampler.of(container.id, () => handler.stats(containerRef(runtime, pod, container), signal)),
    readMetrics(cgroup, layout),
    pid === undefined ? [] : processSamples(processesOf(cgroup)),
    pid === undefined ? [] : readUlimits(pid),
    writableOf(runtime, pod.handler, container.id).catch(() => undefined),
    readDisk(runtime.snapshotter.disks.containers),
  ]);
  const samples: Sample[] = [
    ...usageSamples(usage),
    ...rest,
    ...processes,
    ...ulimits,
    ...disk,
    ...(writable === undefined
      ? []
      : [{ name: "container_fs_usage_bytes" as const, labels: [""], value: writable.bytes }]),
    ...("startedAt" in container
      ? [{ name: "container_start_time_seconds" as const, value: container.startedAt / 1_000_000_000n }]
      : []),
    { name: "container_last_seen", value: BigInt(Math.floor(Date.now() / 1000)) },
  ];
  const labels = labelsOf(pod, {
    container: container.config.metadata?.name ?? "",
    id: container.id,
    image: container.config.image?.userSpecifiedImage ?? "",
  });
  return { containerId: container.id, metrics: metricsOf(samples, labels) };
};

/** What a handler that runs processes of this machine keeps of their cgroup. */
const cgroupOf = (state: HandlerState): CgroupPaths => {
  const { cgroup } = state;
  return typeof cgroup === "object" && cgroup !== null ? (cgroup as CgroupPaths) : {};
};

const usageSamples = (usage: Usage | undefined): Sample[] =>
  usage === undefined
    ? []
    : [
        { name: "container_cpu_usage_seconds_total", value: usage.cpuNanos / 1_000_000_000n },
        { name: "container_memory_usage_bytes", value: usage.memoryUsage },
        { name: "container_memory_working_set_bytes", value: usage.memoryWorkingSet },
        { name: "container_memory_rss", value: usage.memoryRss },
      ];

/** In the order of {@link commonLabels}. */
const labelsOf = (pod: Pod, of: { container: string; id: string; image: string }): string[] => {
  const { name = "", namespace = "" } = pod.config.metadata ?? {};
  return [of.container, of.id, of.image, of.id, namespace, name];
};

/** Read for this call, so without a timestamp: the kubelet would let a scraper believe that it was kept. */
const metricsOf = (samples: readonly Sample[], common: readonly string[]) =>
  samples.map(({ name, labels = [], value }) => ({
    name,
    timestamp: 0n,
    metricType: metricCatalog[name]?.gauge ? MetricType.GAUGE : MetricType.COUNTER,
    labelValues: [...common, ...labels],
    value: { value },
  }));
