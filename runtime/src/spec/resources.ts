import type { LinuxContainerResources } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { HostFacts } from "./host.ts";
import type { Resources } from "./oci.ts";

/**
 * CRI limits as OCI ones. What the kernel cannot do here is left out when the caller only stated a default
 * (hugepages of 0, swap without accounting) and refused when somebody asked for it.
 */
export const resourcesOf = (
  linux: LinuxContainerResources | undefined,
  host: Pick<HostFacts, "cgroup" | "swapAccounting" | "hugetlb">,
): Resources => {
  if (!linux) return {};
  check(linux);
  const cpu: NonNullable<Resources["cpu"]> = {};
  if (linux.cpuShares > 0n) cpu.shares = Number(linux.cpuShares);
  if (linux.cpuQuota !== 0n) cpu.quota = Number(linux.cpuQuota);
  if (linux.cpuPeriod > 0n) cpu.period = Number(linux.cpuPeriod);
  if (linux.cpusetCpus !== "") cpu.cpus = linux.cpusetCpus;
  if (linux.cpusetMems !== "") cpu.mems = linux.cpusetMems;
  const memory: NonNullable<Resources["memory"]> = {};
  if (linux.memoryLimitInBytes !== 0n) {
    memory.limit = Number(linux.memoryLimitInBytes);
    // Without a word about swap a limit means memory and swap together.
    if (host.swapAccounting) memory.swap = Number(linux.memorySwapLimitInBytes || linux.memoryLimitInBytes);
  }
  const unified = Object.entries(linux.unified);
  if (unified.length > 0 && host.cgroup === "v1")
    throw new RuntimeError("invalid-argument", "Cannot set unified cgroup values: this node runs cgroup v1");
  for (const [key] of unified)
    if (!/^[a-z]+\.[a-zA-Z0-9_.]+$/.test(key))
      throw new RuntimeError("invalid-argument", `Cannot set cgroup value "${key}": not a cgroup file name`);
  const hugepages = linux.hugepageLimits.filter((each) => host.hugetlb || each.limit > 0n);
  if (hugepages.length > 0 && !host.hugetlb)
    throw new RuntimeError("invalid-argument", "Cannot limit hugepages: this node has no hugetlb cgroup");
  return {
    ...(Object.keys(cpu).length > 0 && { cpu }),
    ...(Object.keys(memory).length > 0 && { memory }),
    ...(hugepages.length > 0 && {
      hugepageLimits: hugepages.map(({ pageSize, limit }) => ({ pageSize, limit: Number(limit) })),
    }),
    ...(unified.length > 0 && { unified: linux.unified }),
  };
};

const bad = (what: string): RuntimeError => new RuntimeError("invalid-argument", `Cannot ${what}`);
/** cpuset(7), "List format". */
const list = /^\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*$/;
const maxCounted = BigInt(Number.MAX_SAFE_INTEGER);

/** Refuses by name what the kernel would refuse without one. */
const check = (linux: LinuxContainerResources): void => {
  // -1 is without a limit.
  for (const [field, value] of [
    ["cpu_shares", linux.cpuShares],
    ["cpu_quota", linux.cpuQuota],
    ["cpu_period", linux.cpuPeriod],
    ["memory_limit_in_bytes", linux.memoryLimitInBytes],
    ["memory_swap_limit_in_bytes", linux.memorySwapLimitInBytes],
  ] as const)
    if (value < -1n || value > maxCounted) throw bad(`set ${field} to ${value}`);
  for (const [field, value] of [
    ["cpuset_cpus", linux.cpusetCpus],
    ["cpuset_mems", linux.cpusetMems],
  ] as const)
    if (value !== "" && !list.test(value)) throw bad(`set ${field} to "${value}": not a list such as 0-3,7`);
  const { memoryLimitInBytes: memory, memorySwapLimitInBytes: both } = linux;
  if (both > 0n && memory > 0n && both < memory)
    throw bad(
      `set memory_swap_limit_in_bytes to ${both}: memory and swap together are less than the memory, ${memory}`,
    );
  for (const { pageSize, limit } of linux.hugepageLimits) {
    if (!/^\d{1,7}[KMG]B$/.test(pageSize))
      throw bad(`limit hugepages of size "${pageSize}": not a size such as 2MB`);
    if (limit > maxCounted) throw bad(`limit hugepages of size ${pageSize} to ${limit}`);
  }
  for (const [key, value] of Object.entries(linux.unified))
    if (/[\0\n]/.test(value)) throw bad(`set cgroup value "${key}": bad value`);
};

/** oom_score_adj that this process may set: without CAP_SYS_RESOURCE not below its own. */
export const clampOomScoreAdj = (value: number, host: Pick<HostFacts, "oomScoreAdjMin">): number =>
  Math.max(host.oomScoreAdjMin, Math.min(1000, value));
