/** One figure of a metric: the values of the labels beyond those of every metric, and a whole number (CRI, Metric). */
export type Sample = { name: MetricName; labels?: readonly string[]; value: bigint };

type Descriptor = { help: string; gauge?: true; labels?: readonly string[] };

/** Labels that every metric has, as the kubelet's cAdvisor names them. */
export const commonLabels = ["container", "id", "image", "name", "namespace", "pod"] as const;

/**
 * What ListPodSandboxMetrics can tell: the metrics of cAdvisor that the kubelet serves at /metrics/cadvisor, by their
 * names, types and labels (KEP-2371). CRI carries whole numbers: seconds are cut.
 */
const catalog = {
  container_cpu_usage_seconds_total: { help: "Cumulative cpu time consumed in seconds." },
  container_cpu_user_seconds_total: { help: "Cumulative user cpu time consumed in seconds." },
  container_cpu_system_seconds_total: { help: "Cumulative system cpu time consumed in seconds." },
  container_cpu_cfs_periods_total: { help: "Number of elapsed enforcement period intervals." },
  container_cpu_cfs_throttled_periods_total: { help: "Number of throttled period intervals." },
  container_cpu_cfs_throttled_seconds_total: {
    help: "Total time duration the container has been throttled.",
  },
  container_memory_usage_bytes: {
    help: "Current memory usage in bytes, including all memory regardless of when it was accessed.",
    gauge: true,
  },
  container_memory_working_set_bytes: { help: "Current working set in bytes.", gauge: true },
  container_memory_rss: { help: "Size of RSS in bytes.", gauge: true },
  container_memory_cache: { help: "Number of bytes of page cache memory.", gauge: true },
  container_memory_kernel_usage: { help: "Size of kernel memory allocated in bytes.", gauge: true },
  container_memory_mapped_file: { help: "Size of memory mapped files in bytes.", gauge: true },
  container_memory_swap: { help: "Container swap usage in bytes.", gauge: true },
  container_memory_max_usage_bytes: { help: "Maximum memory usage recorded in bytes.", gauge: true },
  container_memory_total_active_file_bytes: { help: "Current total active file in bytes.", gauge: true },
  container_memory_total_inactive_file_bytes: { help: "Current total inactive file in bytes.", gauge: true },
  container_memory_failcnt: { help: "Number of memory usage hits limits." },
  container_memory_failures_total: {
    help: "Cumulative count of memory allocation failures.",
    labels: ["failure_type", "scope"],
  },
  container_oom_events_total: { help: "Count of out of memory events observed for the container." },
  container_blkio_device_usage_total: {
    help: "Blkio device bytes usage.",
    labels: ["device", "major", "minor", "operation"],
  },
  container_fs_reads_bytes_total: { help: "Cumulative count of bytes read.", labels: ["device"] },
  container_fs_reads_total: { help: "Cumulative count of reads completed.", labels: ["device"] },
  container_fs_writes_bytes_total: { help: "Cumulative count of bytes written.", labels: ["device"] },
  container_fs_writes_total: { help: "Cumulative count of writes completed.", labels: ["device"] },
  container_fs_usage_bytes: {
    help: "Number of bytes that are consumed by the container on this filesystem.",
    gauge: true,
    labels: ["device"],
  },
  container_fs_limit_bytes: {
    help: "Number of bytes that can be consumed by the container on this filesystem.",
    gauge: true,
    labels: ["device"],
  },
  container_fs_inodes_total: { help: "Number of inodes.", gauge: true, labels: ["device"] },
  container_fs_inodes_free: { help: "Number of available inodes.", gauge: true, labels: ["device"] },
  container_network_receive_bytes_total: {
    help: "Cumulative count of bytes received.",
    labels: ["interface"],
  },
  container_network_receive_packets_total: {
    help: "Cumulative count of packets received.",
    labels: ["interface"],
  },
  container_network_receive_packets_dropped_total: {
    help: "Cumulative count of packets dropped while receiving.",
    labels: ["interface"],
  },
  container_network_receive_errors_total: {
    help: "Cumulative count of errors encountered while receiving.",
    labels: ["interface"],
  },
  container_network_transmit_bytes_total: {
    help: "Cumulative count of bytes transmitted.",
    labels: ["interface"],
  },
  container_network_transmit_packets_total: {
    help: "Cumulative count of packets transmitted.",
    labels: ["interface"],
  },
  container_network_transmit_packets_dropped_total: {
    help: "Cumulative count of packets dropped while transmitting.",
    labels: ["interface"],
  },
  container_network_transmit_errors_total: {
    help: "Cumulative count of errors encountered while transmitting.",
    labels: ["interface"],
  },
  container_processes: { help: "Number of processes running inside the container.", gauge: true },
  container_threads: { help: "Number of threads running inside the container.", gauge: true },
  container_threads_max: {
    help: "Maximum number of threads allowed inside the container, zero without a limit.",
    gauge: true,
  },
  container_file_descriptors: { help: "Number of open file descriptors for the container.", gauge: true },
  container_sockets: { help: "Number of open sockets for the container.", gauge: true },
  container_ulimits_soft: {
    help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice.",
    gauge: true,
    labels: ["ulimit"],
  },
  container_spec_cpu_period: { help: "CPU period of the container.", gauge: true },
  container_spec_cpu_quota: { help: "CPU quota of the container.", gauge: true },
  container_spec_cpu_shares: { help: "CPU share of the container.", gauge: true },
  container_spec_memory_limit_bytes: { help: "Memory limit for the container.", gauge: true },
  container_spec_memory_reservation_limit_bytes: {
    help: "Memory reservation limit for the container.",
    gauge: true,
  },
  container_spec_memory_swap_limit_bytes: { help: "Memory swap limit for the container.", gauge: true },
  container_start_time_seconds: {
    help: "Start time of the container since unix epoch in seconds.",
    gauge: true,
  },
  container_last_seen: { help: "Last time a container was seen by the exporter.", gauge: true },
} as const satisfies Record<string, Descriptor>;

/** A metric by its name. */
export type MetricName = keyof typeof catalog;

/** The same catalogue, its names forgotten. */
export const metricCatalog: Readonly<Record<string, Descriptor>> = catalog;
