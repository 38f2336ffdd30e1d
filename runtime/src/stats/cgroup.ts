import { readdirSync, readFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Usage } from "../handler/handler.ts";
import { throwExhausted } from "../linux/exhausted.ts";
import { V1_METRIC_FILES, V2_METRIC_FILES, v1Samples, v2Samples } from "./cgroup-metrics.ts";
import type { CgroupLayout, CgroupPaths } from "./layout.ts";
import type { Sample } from "./metric-catalog.ts";
import { parseOomKills, parseV1, parseV2, type UsageFiles, V1_FILES, V2_FILES } from "./usage.ts";

/**
 * What a cgroup used, undefined when it is gone. Reads the kernel's files and starts no process. Reads off the main
 * thread: memory.stat flushes per-CPU counters and may take a while on large machines.
 */
export const readUsage = async (paths: CgroupPaths, layout: CgroupLayout): Promise<Usage | undefined> => {
  const named: [string, string | undefined][] =
    layout.version === 1
      ? Object.entries(V1_FILES).map(([file, controller]) => [file, paths[controller]])
      : V2_FILES.map((file) => [file, paths[""]]);
  const files = await readFiles(named);
  if (Object.values(files).every((text) => text === undefined)) return undefined;
  const figures = layout.version === 1 ? parseV1(files) : parseV2(files);
  return { timestamp: BigInt(Date.now()) * 1_000_000n, ...figures };
};

/** The metrics of a cgroup beyond its usage; none when it is gone. */
export const readMetrics = async (paths: CgroupPaths, layout: CgroupLayout): Promise<Sample[]> =>
  layout.version === 1
    ? v1Samples(
        await readFiles(
          Object.entries(V1_METRIC_FILES).map(([file, controller]) => [file, paths[controller]]),
        ),
      )
    : v2Samples(await readFiles(V2_METRIC_FILES.map((file) => [file, paths[""]])));

const readFiles = async (named: readonly (readonly [string, string | undefined])[]): Promise<UsageFiles> =>
  Object.fromEntries(
    await Promise.all(
      named.map(async ([file, directory]) => [file, directory && (await readIfThere(join(directory, file)))]),
    ),
  );

/** How many processes of the cgroup the OOM killer ended since it was made; undefined when it is gone. */
const oomKills = (directory: string | undefined, layout: CgroupLayout): bigint | undefined => {
  if (directory === undefined) return undefined;
  const file = layout.version === 1 ? "memory.oom_control" : "memory.events";
  try {
    return parseOomKills(readFileSync(join(directory, file), "latin1"));
  } catch {
    return undefined;
  }
};

/** Whether the OOM killer struck in the cgroup since it was made; undefined when the cgroup is gone. */
export const wasOomKilled = (paths: CgroupPaths, layout: CgroupLayout): boolean | undefined => {
  const kills = oomKills(layout.version === 1 ? paths.memory : paths[""], layout);
  return kills === undefined ? undefined : kills > 0n;
};

/**
 * Kills in the cgroup above, whose count has those below in it (v2). systemd takes a scope away as soon as it is
 * empty, and the scope's own count with it.
 */
export const oomKillsAbove = (paths: CgroupPaths, layout: CgroupLayout): number => {
  const own = paths[""];
  return layout.version === 2 && own !== undefined ? Number(oomKills(dirname(own), layout) ?? 0n) : 0;
};

/** Every process in the cgroup and in those below it. */
export const processesOf = (paths: CgroupPaths): number[] => {
  const directory =
    paths.pids ?? paths.memory ?? paths["name=systemd"] ?? paths[""] ?? Object.values(paths)[0];
  const pids = new Set<number>();
  const walk = (path: string) => {
    let entries: { name: string; isDirectory(): boolean }[];
    try {
      entries = readdirSync(path, { withFileTypes: true });
      for (const pid of readFileSync(join(path, "cgroup.procs"), "latin1").split("\n"))
        if (pid !== "" && pid !== "0") pids.add(Number(pid));
    } catch (error) {
      // Nobody in it, or nobody looked: whoever kills them must know which.
      throwExhausted(error);
      return;
    }
    for (const entry of entries) if (entry.isDirectory()) walk(join(path, entry.name));
  };
  if (directory !== undefined) walk(directory);
  return [...pids];
};

/** Kills all at once where the kernel can (cgroup.kill, v2, Linux 5.14). */
export const killCgroup = async (paths: CgroupPaths, layout: CgroupLayout): Promise<boolean> => {
  if (layout.version !== 2 || paths[""] === undefined) return false;
  try {
    await writeFile(join(paths[""], "cgroup.kill"), "1", { flag: "r+" });
    return true;
  } catch {
    return false;
  }
};

const readIfThere = async (path: string): Promise<string | undefined> => {
  try {
    return await readFile(path, "latin1");
  } catch {
    return undefined;
  }
};
