import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import { MetricsSchema as MetricsV1 } from "@bulkhead/lib/gen/cgroups_v1_pb.js";
import { MetricsSchema as MetricsV2 } from "@bulkhead/lib/gen/cgroups_v2_pb.js";
import { throwExhausted } from "../../linux/exhausted.ts";
import type { Usage } from "../handler.ts";

/** Cgroup v1 says "no limit" by a number close to 2^63, and v2 by all ones. */
const limitOf = (value: bigint | undefined): bigint =>
  value === undefined || value >= 0x7fffffff00000000n ? 0n : value;

const less = (usage: bigint, cache: bigint): bigint => (usage > cache ? usage - cache : 0n);

/** What a shim's Stats says; undefined for a kind of metrics that we do not know. */
export function usageOf(stats: Any, timestamp: bigint): Usage | undefined {
  const type = stats.typeUrl.slice(stats.typeUrl.lastIndexOf("/") + 1);
  if (type === MetricsV1.typeName) {
    const { cpu, memory, pids } = fromBinary(MetricsV1, stats.value);
    const used = memory?.usage?.usage ?? 0n;
    return {
      timestamp,
      cpuNanos: cpu?.usage?.total ?? 0n,
      memoryUsage: used,
      memoryWorkingSet: less(used, memory?.totalInactiveFile ?? 0n),
      memoryRss: memory?.totalRss ?? 0n,
      pageFaults: memory?.totalPgFault ?? 0n,
      majorPageFaults: memory?.totalPgMajFault ?? 0n,
      memoryLimit: limitOf(memory?.usage?.limit),
      pids: pids?.current ?? 0n,
    };
  }
  if (type === MetricsV2.typeName) {
    const { cpu, memory, pids } = fromBinary(MetricsV2, stats.value);
    const used = memory?.usage ?? 0n;
    return {
      timestamp,
      cpuNanos: (cpu?.usageUsec ?? 0n) * 1000n,
      memoryUsage: used,
      memoryWorkingSet: less(used, memory?.inactiveFile ?? 0n),
      memoryRss: memory?.anon ?? 0n,
      pageFaults: memory?.pgfault ?? 0n,
      majorPageFaults: memory?.pgmajfault ?? 0n,
      memoryLimit: limitOf(memory?.usageLimit),
      pids: pids?.current ?? 0n,
    };
  }
  return undefined;
}

/** Directories of a process's cgroups, by what is read in them. The same one for all with cgroup v2. */
export type Cgroups = { version: 1 | 2; memory: string; cpu: string; pids: string };

/** From the text of /proc/PID/cgroup. */
export function parseCgroups(text: string, root = "/sys/fs/cgroup"): Cgroups | undefined {
  const paths = new Map<string, string>();
  for (const line of text.split("\n")) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    for (const controller of controllers.split(",")) paths.set(controller, path);
  }
  const v1 = (controller: string) => {
    const path = paths.get(controller);
    return path === undefined ? undefined : join(root, controller, path);
  };
  const memory = v1("memory");
  if (memory !== undefined)
    return { version: 1, memory, cpu: v1("cpuacct") ?? memory, pids: v1("pids") ?? memory };
  const unified = paths.get("");
  if (unified === undefined) return undefined;
  const directory = join(root, unified);
  return { version: 2, memory: directory, cpu: directory, pids: directory };
}

export const cgroupsOf = (pid: number): Cgroups | undefined => {
  try {
    return parseCgroups(readFileSync(`/proc/${pid}/cgroup`, "utf8"));
  } catch (error) {
    throwExhausted(error);
    return undefined;
  }
};

const read = (directory: string, file: string): string | undefined => {
  try {
    return readFileSync(join(directory, file), "utf8");
  } catch {
    return undefined;
  }
};

const number = (text: string | undefined): bigint => BigInt(/^\d+/.exec(text ?? "")?.[0] ?? 0);

/** Lines of `key value`. */
const table = (text: string | undefined): ((key: string) => bigint) => {
  const values = new Map((text ?? "").split("\n").map((line) => line.split(" ") as [string, string]));
  return (key) => number(values.get(key));
};

/** What the kernel counts for a cgroup; undefined when it is gone. */
export function cgroupUsage({ version, memory, cpu, pids }: Cgroups, timestamp: bigint): Usage | undefined {
  const usage = read(memory, version === 1 ? "memory.usage_in_bytes" : "memory.current");
  if (usage === undefined) return undefined;
  const stat = table(read(memory, "memory.stat"));
  const v1 = version === 1;
  return {
    timestamp,
    cpuNanos: v1 ? number(read(cpu, "cpuacct.usage")) : table(read(cpu, "cpu.stat"))("usage_usec") * 1000n,
    memoryUsage: number(usage),
    memoryWorkingSet: less(number(usage), stat(v1 ? "total_inactive_file" : "inactive_file")),
    memoryRss: stat(v1 ? "total_rss" : "anon"),
    pageFaults: stat(v1 ? "total_pgfault" : "pgfault"),
    majorPageFaults: stat(v1 ? "total_pgmajfault" : "pgmajfault"),
    memoryLimit: limitOf(number(read(memory, v1 ? "memory.limit_in_bytes" : "memory.max"))),
    pids: number(read(pids, "pids.current")),
  };
}

/** Bytes charged to a cgroup; undefined when it is gone. */
export function memoryOf({ version, memory }: Cgroups): bigint | undefined {
  const text = read(memory, version === 1 ? "memory.usage_in_bytes" : "memory.current");
  return text === undefined ? undefined : number(text);
}

/** How often the kernel killed for want of memory in a cgroup; undefined when it is gone. */
export function oomKills({ version, memory }: Cgroups): number | undefined {
  const text = read(memory, version === 1 ? "memory.oom_control" : "memory.events");
  return text === undefined ? undefined : Number(table(text)("oom_kill"));
}
