import type { Usage } from "../handler/handler.ts";

/** Contents of the files of a cgroup that make up its usage; a file that is not there is undefined. */
export type UsageFiles = Record<string, string | undefined>;

type Figures = Omit<Usage, "timestamp">;

/** Files of cgroup v1 (kernel admin-guide/cgroup-v1), each with the controller that has it. */
export const V1_FILES = {
  "cpuacct.usage": "cpuacct",
  "memory.usage_in_bytes": "memory",
  "memory.limit_in_bytes": "memory",
  "memory.stat": "memory",
  "pids.current": "pids",
} as const;

/** Files of cgroup v2 (kernel admin-guide/cgroup-v2.rst). */
export const V2_FILES = ["cpu.stat", "memory.current", "memory.max", "memory.stat", "pids.current"] as const;

/** No limit is written as the largest number of pages. */
const V1_UNLIMITED = 1n << 62n;

export const parseV1 = (files: UsageFiles): Figures => {
  const stat = parseFlat(files["memory.stat"]);
  const usage = parseNumber(files["memory.usage_in_bytes"]);
  const limit = parseNumber(files["memory.limit_in_bytes"]);
  return {
    cpuNanos: parseNumber(files["cpuacct.usage"]),
    memoryUsage: usage,
    memoryWorkingSet: atLeastZero(usage - (stat.total_inactive_file ?? stat.inactive_file ?? 0n)),
    memoryRss: stat.total_rss ?? stat.rss ?? 0n,
    pageFaults: stat.total_pgfault ?? stat.pgfault ?? 0n,
    majorPageFaults: stat.total_pgmajfault ?? stat.pgmajfault ?? 0n,
    memoryLimit: limit >= V1_UNLIMITED ? 0n : limit,
    pids: parseNumber(files["pids.current"]),
  };
};

export const parseV2 = (files: UsageFiles): Figures => {
  const stat = parseFlat(files["memory.stat"]);
  const usage = parseNumber(files["memory.current"]);
  return {
    cpuNanos: (parseFlat(files["cpu.stat"]).usage_usec ?? 0n) * 1000n,
    memoryUsage: usage,
    memoryWorkingSet: atLeastZero(usage - (stat.inactive_file ?? 0n)),
    memoryRss: stat.anon ?? 0n,
    pageFaults: stat.pgfault ?? 0n,
    majorPageFaults: stat.pgmajfault ?? 0n,
    memoryLimit: parseNumber(files["memory.max"]),
    pids: parseNumber(files["pids.current"]),
  };
};

/** What several cgroups use together; undefined of none. Without a limit is the sum when one of them is. */
export const usageTogether = (usages: readonly Usage[]): Usage | undefined => {
  const [first] = usages;
  if (first === undefined) return undefined;
  const sum = (of: keyof Usage): bigint => usages.reduce((total, usage) => total + usage[of], 0n);
  return {
    timestamp: first.timestamp,
    cpuNanos: sum("cpuNanos"),
    memoryUsage: sum("memoryUsage"),
    memoryWorkingSet: sum("memoryWorkingSet"),
    memoryRss: sum("memoryRss"),
    pageFaults: sum("pageFaults"),
    majorPageFaults: sum("majorPageFaults"),
    memoryLimit: usages.some(({ memoryLimit }) => memoryLimit === 0n) ? 0n : sum("memoryLimit"),
    pids: sum("pids"),
  };
};

/** How many processes the OOM killer ended, by memory.oom_control (v1) or memory.events (v2). */
export const parseOomKills = (text: string): bigint => parseFlat(text).oom_kill ?? 0n;

/** "max" counts as 0, like anything that is no number. */
const parseNumber = (text: string | undefined): bigint => {
  const digits = text?.trim() ?? "";
  return /^\d+$/.test(digits) ? BigInt(digits) : 0n;
};

/** Flat keyed files: "KEY NUMBER" on each line. */
export const parseFlat = (text: string | undefined): Record<string, bigint> => {
  const values: Record<string, bigint> = {};
  for (const line of text?.split("\n") ?? []) {
    const [, key, value] = /^(\S+) (\d+)$/.exec(line) ?? [];
    if (key !== undefined && value !== undefined) values[key] = BigInt(value);
  }
  return values;
};

const atLeastZero = (value: bigint) => (value < 0n ? 0n : value);
