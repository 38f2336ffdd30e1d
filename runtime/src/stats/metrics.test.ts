import { describe, expect, test } from "vitest";
import { v1Samples, v2Samples } from "./cgroup-metrics.ts";
import { commonLabels, metricCatalog, type Sample } from "./metric-catalog.ts";
import { parseNetDev } from "./net-dev.ts";
import { networkSamples, processSamples, ulimitSamples } from "./process-metrics.ts";

const v1 = v1Samples({
  "cpuacct.stat": "user 250\nsystem 130\n",
  "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n",
  "cpu.cfs_period_us": "100000\n",
  "cpu.cfs_quota_us": "-1\n",
  "cpu.shares": "102\n",
  "memory.stat": "pgfault 1\npgmajfault 0\ntotal_cache 4096\ntotal_mapped_file 8\ntotal_pgfault 9\n",
  "memory.limit_in_bytes": "33554432\n",
  "memory.memsw.limit_in_bytes": "9223372036854771712\n",
  "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
  "pids.max": "max\n",
  "blkio.throttle.io_service_bytes_recursive":
    "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 9\n8:0 Total 4608\nTotal 4608\n",
  "blkio.throttle.io_serviced_recursive": "8:0 Read 2\nTotal 2\n",
});
const v2 = v2Samples({
  "cpu.stat": "usage_usec 9\nuser_usec 3500000\nsystem_usec 999999\nnr_periods 7\nthrottled_usec 1000000\n",
  "cpu.max": "50000 100000\n",
  "cpu.weight": "100\n",
  "memory.stat": "file 4096\nkernel 77\npgfault 5\n",
  "memory.events": "low 0\nmax 3\noom 1\noom_kill 1\n",
  "memory.max": "1000\n",
  "memory.swap.max": "500\n",
  "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
});
const of = (samples: readonly Sample[], name: string) =>
  samples
    .filter((each) => each.name === name)
    .map(({ value, labels }) => (labels ? [...labels, value] : value));

describe("cgroup v1", () => {
  test.each([
    ["container_cpu_user_seconds_total", [2n]],
    ["container_cpu_system_seconds_total", [1n]],
    ["container_cpu_cfs_throttled_periods_total", [4n]],
    ["container_cpu_cfs_throttled_seconds_total", [2n]],
    ["container_spec_cpu_shares", [102n]],
    ["container_memory_cache", [4096n]],
    ["container_oom_events_total", [2n]],
    ["container_spec_memory_limit_bytes", [33554432n]],
    ["container_fs_reads_bytes_total", [["8:0", 4096n]]],
    ["container_fs_writes_bytes_total", [["8:0", 512n]]],
    ["container_fs_reads_total", [["8:0", 2n]]],
  ])("%s", (name, values) => expect(of(v1, name)).toEqual(values));

  test("no limit is 0, no quota is no figure, and a file that is not there is none", () => {
    expect(of(v1, "container_spec_memory_swap_limit_bytes")).toEqual([0n]);
    expect(of(v1, "container_threads_max")).toEqual([0n]);
    expect(of(v1, "container_spec_cpu_quota")).toEqual([]);
    expect(v1Samples({})).toEqual([]);
  });

  test("faults are told of the cgroup itself and of all below it", () => {
    expect(of(v1, "container_memory_failures_total")).toEqual([
      ["pgfault", "container", 1n],
      ["pgmajfault", "container", 0n],
      ["pgfault", "hierarchy", 9n],
    ]);
  });
});

describe("cgroup v2", () => {
  test.each([
    ["container_cpu_user_seconds_total", [3n]],
    ["container_cpu_system_seconds_total", [0n]],
    ["container_cpu_cfs_throttled_seconds_total", [1n]],
    ["container_spec_cpu_quota", [50000n]],
    ["container_spec_cpu_period", [100000n]],
    ["container_memory_kernel_usage", [77n]],
    ["container_memory_failcnt", [3n]],
    ["container_spec_memory_swap_limit_bytes", [1500n]],
    ["container_fs_writes_total", [["8:0", 2n]]],
    [
      "container_blkio_device_usage_total",
      [
        ["8:0", "8", "0", "Read", 10n],
        ["8:0", "8", "0", "Write", 20n],
      ],
    ],
  ])("%s", (name, values) => expect(of(v2, name)).toEqual(values));

  test("a weight is told as the shares that it was made of", () => {
    const weightOf = (shares: bigint) => 1n + ((shares - 2n) * 9_999n) / 262_142n;
    const [shares] = of(v2Samples({ "cpu.weight": `${weightOf(1024n)}` }), "container_spec_cpu_shares");
    // runc rounds down: a weight stands for 26 shares.
    expect(Number(shares)).toBeGreaterThan(1024 - 27);
    expect(Number(shares)).toBeLessThanOrEqual(1024);
  });
});

test("every sample has as many labels as its descriptor names", async () => {
  const interfaces = parseNetDev(
    "  eth0: 100 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n",
  );
  const network = networkSamples(interfaces);
  expect(network.map(({ value }) => value)).toEqual([100n, 2n, 3n, 4n, 50n, 6n, 7n, 8n]);
  const ulimits = ulimitSamples(
    "Limit  Soft  Hard  Units\nMax open files            1024                 4096   files\n",
  );
  expect(ulimits).toEqual([{ name: "container_ulimits_soft", labels: ["max_open_files"], value: 1024n }]);
  const all = [...v1, ...v2, ...network, ...ulimits, ...(await processSamples([process.pid]))];
  for (const { name, labels = [] } of all)
    expect([name, labels.length]).toEqual([name, metricCatalog[name]?.labels?.length ?? 0]);
  const extra = Object.values(metricCatalog).flatMap(({ labels }) => labels ?? []);
  expect(extra.filter((label) => (commonLabels as readonly string[]).includes(label))).toEqual([]);
});

test("processes: threads, files and sockets of those that live", async () => {
  const samples = await processSamples([process.pid, 2 ** 22 + 1]);
  expect(of(samples, "container_processes")).toEqual([1n]);
  expect(Number(of(samples, "container_threads")[0])).toBeGreaterThan(1);
  expect(Number(of(samples, "container_file_descriptors")[0])).toBeGreaterThan(2);
});
