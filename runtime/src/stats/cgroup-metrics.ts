import type { Sample } from "./metric-catalog.ts";
import { parseFlat, type UsageFiles } from "./usage.ts";

/** Files of cgroup v1 that the metrics need, each with the controller that has it. */
export const V1_METRIC_FILES = {
  "cpuacct.usage": "cpuacct",
  "cpuacct.stat": "cpuacct",
  "cpu.stat": "cpu",
  "cpu.cfs_period_us": "cpu",
  "cpu.cfs_quota_us": "cpu",
  "cpu.shares": "cpu",
  "memory.stat": "memory",
  "memory.max_usage_in_bytes": "memory",
  "memory.failcnt": "memory",
  "memory.kmem.usage_in_bytes": "memory",
  "memory.soft_limit_in_bytes": "memory",
  "memory.memsw.limit_in_bytes": "memory",
  "memory.limit_in_bytes": "memory",
  "memory.oom_control": "memory",
  "pids.max": "pids",
  "blkio.throttle.io_service_bytes_recursive": "blkio",
  "blkio.throttle.io_serviced_recursive": "blkio",
} as const;

/** Files of cgroup v2 that the metrics need. */
export const V2_METRIC_FILES = [
  ...["cpu.stat", "cpu.max", "cpu.weight", "memory.stat", "memory.peak", "memory.events"],
  ...["memory.max", "memory.low", "memory.swap.max", "memory.swap.current", "pids.max", "io.stat"],
] as const;

/** USER_HZ, the unit of cpuacct.stat: 100 on every architecture that Node.js runs on. */
const ticksPerSecond = 100n;
/** No limit is written as the largest number of pages. */
const unlimited = 1n << 62n;

/** The figures of a cgroup v1. A file that is not there gives none. */
export const v1Samples = (files: UsageFiles): Sample[] => {
  const cpu = parseFlat(files["cpu.stat"]);
  const time = parseFlat(files["cpuacct.stat"]);
  const memory = parseFlat(files["memory.stat"]);
  return present([
    ["container_cpu_user_seconds_total", over(time.user, ticksPerSecond)],
    ["container_cpu_system_seconds_total", over(time.system, ticksPerSecond)],
    ["container_cpu_cfs_periods_total", cpu.nr_periods],
    ["container_cpu_cfs_throttled_periods_total", cpu.nr_throttled],
    ["container_cpu_cfs_throttled_seconds_total", over(cpu.throttled_time, 1_000_000_000n)],
    ["container_spec_cpu_period", number(files["cpu.cfs_period_us"])],
    ["container_spec_cpu_quota", number(files["cpu.cfs_quota_us"])],
    ["container_spec_cpu_shares", number(files["cpu.shares"])],
    ["container_memory_cache", memory.total_cache],
    ["container_memory_mapped_file", memory.total_mapped_file],
    ["container_memory_swap", memory.total_swap],
    ["container_memory_total_active_file_bytes", memory.total_active_file],
    ["container_memory_total_inactive_file_bytes", memory.total_inactive_file],
    ["container_memory_kernel_usage", number(files["memory.kmem.usage_in_bytes"])],
    ["container_memory_max_usage_bytes", number(files["memory.max_usage_in_bytes"])],
    ["container_memory_failcnt", number(files["memory.failcnt"])],
    ["container_memory_failures_total", memory.pgfault, ["pgfault", "container"]],
    ["container_memory_failures_total", memory.pgmajfault, ["pgmajfault", "container"]],
    ["container_memory_failures_total", memory.total_pgfault, ["pgfault", "hierarchy"]],
    ["container_memory_failures_total", memory.total_pgmajfault, ["pgmajfault", "hierarchy"]],
    ["container_oom_events_total", parseFlat(files["memory.oom_control"]).oom_kill],
    ["container_spec_memory_limit_bytes", limit(files["memory.limit_in_bytes"])],
    ["container_spec_memory_reservation_limit_bytes", limit(files["memory.soft_limit_in_bytes"])],
    ["container_spec_memory_swap_limit_bytes", limit(files["memory.memsw.limit_in_bytes"])],
    ["container_threads_max", limit(files["pids.max"])],
    ...v1Devices(files["blkio.throttle.io_service_bytes_recursive"], "bytes"),
    ...v1Devices(files["blkio.throttle.io_serviced_recursive"], "operations"),
  ]);
};

/** The figures of a cgroup v2. */
export const v2Samples = (files: UsageFiles): Sample[] => {
  const cpu = parseFlat(files["cpu.stat"]);
  const memory = parseFlat(files["memory.stat"]);
  const events = parseFlat(files["memory.events"]);
  const [quota, period] = (files["cpu.max"]?.trim() ?? "").split(" ");
  const swap = number(files["memory.swap.max"]);
  const most = limit(files["memory.max"]);
  return present([
    ["container_cpu_user_seconds_total", over(cpu.user_usec, 1_000_000n)],
    ["container_cpu_system_seconds_total", over(cpu.system_usec, 1_000_000n)],
    ["container_cpu_cfs_periods_total", cpu.nr_periods],
    ["container_cpu_cfs_throttled_periods_total", cpu.nr_throttled],
    ["container_cpu_cfs_throttled_seconds_total", over(cpu.throttled_usec, 1_000_000n)],
    ["container_spec_cpu_period", number(period)],
    ["container_spec_cpu_quota", number(quota)],
    ["container_spec_cpu_shares", sharesOf(number(files["cpu.weight"]))],
    ["container_memory_cache", memory.file],
    ["container_memory_mapped_file", memory.file_mapped],
    ["container_memory_swap", number(files["memory.swap.current"])],
    ["container_memory_total_active_file_bytes", memory.active_file],
    ["container_memory_total_inactive_file_bytes", memory.inactive_file],
    ["container_memory_kernel_usage", memory.kernel],
    ["container_memory_max_usage_bytes", number(files["memory.peak"])],
    ["container_memory_failcnt", events.max],
    ["container_memory_failures_total", memory.pgfault, ["pgfault", "hierarchy"]],
    ["container_memory_failures_total", memory.pgmajfault, ["pgmajfault", "hierarchy"]],
    ["container_oom_events_total", events.oom_kill],
    ["container_spec_memory_limit_bytes", most],
    ["container_spec_memory_reservation_limit_bytes", limit(files["memory.low"])],
    // v2 counts swap alone, the metric memory with swap.
    ["container_spec_memory_swap_limit_bytes", swap === undefined || most === undefined ? 0n : swap + most],
    ["container_threads_max", limit(files["pids.max"])],
    ...v2Devices(files["io.stat"]),
  ]);
};

type Row = [name: Sample["name"], value: bigint | undefined, labels?: readonly string[]];

const present = (rows: readonly Row[]): Sample[] =>
  rows.flatMap(([name, value, labels]) =>
    value === undefined ? [] : [{ name, value, ...(labels && { labels }) }],
  );

const over = (value: bigint | undefined, unit: bigint): bigint | undefined =>
  value === undefined ? undefined : value / unit;

/** "max" and "-1" are no number: the metric is left out. */
const number = (text: string | undefined): bigint | undefined => {
  const digits = text?.trim() ?? "";
  return /^\d+$/.test(digits) ? BigInt(digits) : undefined;
};

/** A limit, 0 without one, as cAdvisor says it. */
const limit = (text: string | undefined): bigint | undefined => {
  if (text === undefined) return undefined;
  const value = number(text);
  return value === undefined || value >= unlimited ? 0n : value;
};

/** Shares from the weight that runc made of them: weight = 1 + ((shares − 2) · 9999) / 262142. */
const sharesOf = (weight: bigint | undefined): bigint | undefined =>
  weight === undefined ? undefined : 2n + ((weight - 1n) * 262_142n) / 9_999n;

/** "8:0 Read 4096" on each line (blkio controller); names of devices are for whoever has the host's /dev. */
const v1Devices = (text: string | undefined, what: "bytes" | "operations"): Row[] =>
  (text ?? "").split("\n").flatMap((line): Row[] => {
    const [, major, minor, operation, value] = /^(\d+):(\d+) (\w+) (\d+)$/.exec(line) ?? [];
    if (major === undefined || minor === undefined || operation === undefined || value === undefined)
      return [];
    return deviceRows(major, minor, operation, BigInt(value), what);
  });

/** "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …" on each line. */
const v2Devices = (text: string | undefined): Row[] =>
  (text ?? "").split("\n").flatMap((line): Row[] => {
    const [, major, minor, rest] = /^(\d+):(\d+) (.+)$/.exec(line) ?? [];
    if (major === undefined || minor === undefined || rest === undefined) return [];
    return rest.split(" ").flatMap((pair): Row[] => {
      const [, key, value] = /^(rbytes|wbytes|rios|wios)=(\d+)$/.exec(pair) ?? [];
      if (key === undefined || value === undefined) return [];
      const operation = key.startsWith("r") ? "Read" : "Write";
      return deviceRows(
        major,
        minor,
        operation,
        BigInt(value),
        key.endsWith("bytes") ? "bytes" : "operations",
      );
    });
  });

const deviceRows = (
  major: string,
  minor: string,
  operation: string,
  value: bigint,
  what: "bytes" | "operations",
): Row[] => {
  const device = `${major}:${minor}`;
  const kind = operation === "Read" ? "reads" : operation === "Write" ? "writes" : undefined;
  const usage: Row[] =
    what === "bytes"
      ? [["container_blkio_device_usage_total", value, [device, major, minor, operation]]]
      : [];
  if (kind === undefined) return usage;
  const name: Sample["name"] =
    what === "bytes" ? `container_fs_${kind}_bytes_total` : `container_fs_${kind}_total`;
  return [...usage, [name, value, [device]]];
};
