import { create } from "@bufbuild/protobuf";
import {
  type ContainerStats,
  ListMetricDescriptorsResponseSchema,
  ListPodSandboxMetricsResponseSchema,
  MetricType,
} from "@bulkhead/lib/gen/cri_pb.js";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { listPodSandboxStats } from "./stats.ts";

type Measure = {
  name: string;
  help: string;
  type: MetricType;
  of: (stats: ContainerStats) => { value: bigint; timestamp: bigint } | undefined;
};

const figure = (value: bigint | undefined, timestamp: bigint | undefined) =>
  value === undefined || timestamp === undefined ? undefined : { value, timestamp };

/** By the names that cAdvisor gave them (KEP-2371); values are whole numbers there. */
const measures: readonly Measure[] = [
  {
    name: "container_cpu_usage_seconds_total",
    help: "Cumulative cpu time consumed in seconds.",
    type: MetricType.COUNTER,
    of: ({ cpu }) =>
      figure(cpu?.usageCoreNanoSeconds && cpu.usageCoreNanoSeconds.value / 1_000_000_000n, cpu?.timestamp),
  },
  {
    name: "container_memory_usage_bytes",
    help: "Current memory usage in bytes, including all memory regardless of when it was accessed.",
    type: MetricType.GAUGE,
    of: ({ memory }) => figure(memory?.usageBytes?.value, memory?.timestamp),
  },
  {
    name: "container_memory_working_set_bytes",
    help: "Current working set in bytes.",
    type: MetricType.GAUGE,
    of: ({ memory }) => figure(memory?.workingSetBytes?.value, memory?.timestamp),
  },
  {
    name: "container_memory_rss",
    help: "Size of RSS in bytes.",
    type: MetricType.GAUGE,
    of: ({ memory }) => figure(memory?.rssBytes?.value, memory?.timestamp),
  },
  {
    name: "container_fs_usage_bytes",
    help: "Number of bytes that are consumed by the container on this filesystem.",
    type: MetricType.GAUGE,
    of: ({ writableLayer }) => figure(writableLayer?.usedBytes?.value, writableLayer?.timestamp),
  },
];

const labelKeys = ["id", "name", "image", "container"];

/** ListMetricDescriptors. */
export const listMetricDescriptors = (): RuntimeMethods["listMetricDescriptors"] => async () =>
  create(ListMetricDescriptorsResponseSchema, {
    descriptors: measures.map(({ name, help }) => ({ name, help, labelKeys })),
  });

/** ListPodSandboxMetrics: the figures of the statistics, under the names above. */
export const listPodSandboxMetrics = (runtime: Runtime): RuntimeMethods["listPodSandboxMetrics"] => {
  const list = listPodSandboxStats(runtime);
  return async (_request, signal) => {
    const { stats } = await list({ $typeName: "runtime.v1.ListPodSandboxStatsRequest" }, signal);
    return create(ListPodSandboxMetricsResponseSchema, {
      podMetrics: stats.map((pod) => ({
        podSandboxId: pod.attributes?.id ?? "",
        containerMetrics: (pod.linux?.containers ?? []).map((container) => {
          const id = container.attributes?.id ?? "";
          const name = container.attributes?.metadata?.name ?? "";
          const image = runtime.containers.get(id)?.config.image?.userSpecifiedImage ?? "";
          return {
            containerId: id,
            metrics: measures.flatMap((measure) => {
              const found = measure.of(container);
              return found
                ? [
                    {
                      name: measure.name,
                      timestamp: found.timestamp,
                      metricType: measure.type,
                      labelValues: [id, name, image, name],
                      value: { value: found.value },
                    },
                  ]
                : [];
            }),
          };
        }),
      })),
    });
  };
};
