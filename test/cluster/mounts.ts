import { existsSync } from "node:fs";
import { readdir, readFile, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { outcome, run } from "../tools/run.ts";
import { endProcesses } from "./process.ts";

/** Mount points of this machine at or below a directory, innermost first. */
export const mountsBelow = async (dir: string): Promise<string[]> =>
  (await readFile("/proc/self/mountinfo", "utf8"))
    .split("\n")
    .map((line) => line.split(" ")[4]?.replace(/\\040/g, " ") ?? "")
    .filter((target) => target === dir || target.startsWith(`${dir}/`))
    .reverse();

/** Unmounts everything at or below a directory. */
export const unmountBelow = async (dir: string): Promise<void> => {
  for (const target of await mountsBelow(dir)) {
    const { code } = await outcome(["umount", target]);
    if (code !== 0) await run(["umount", "--lazy", target]);
  }
};

/** The directories that a cgroup path has: one per v1 hierarchy, and one where v2 is mounted. */
export const cgroupDirs = async (path: string): Promise<string[]> => {
  const root = "/sys/fs/cgroup";
  const hierarchies = ["", ...(await readdir(root))];
  return [...new Set(hierarchies.map((name) => join(root, name, path)))].filter((dir) => existsSync(dir));
};

/** Kills every process of a cgroup and of all below it. */
export const killCgroups = async (path: string): Promise<void> => {
  const pids = new Set<number>();
  for (const dir of await cgroupDirs(path)) await collectProcesses(dir, pids);
  await endProcesses(
    [...pids].map((pid) => ({ pid })),
    0,
  );
};

const collectProcesses = async (dir: string, into: Set<number>): Promise<void> => {
  const text = await readFile(join(dir, "cgroup.procs"), "utf8").catch(() => "");
  for (const pid of text.split("\n").filter(Boolean)) into.add(Number(pid));
  for (const entry of await readdir(dir, { withFileTypes: true }).catch(() => []))
    if (entry.isDirectory()) await collectProcesses(join(dir, entry.name), into);
};

/** Removes a cgroup and all below it, in every hierarchy, and its parent if that is empty. Its processes must be gone. */
export const removeCgroups = async (path: string): Promise<void> => {
  for (const dir of await cgroupDirs(path)) await removeTree(dir);
  // Another cluster's cgroups keep the parent: rmdir refuses then.
  for (const dir of await cgroupDirs(dirname(path))) await rmdir(dir).catch(() => {});
};

const removeTree = async (dir: string): Promise<void> => {
  for (const entry of await readdir(dir, { withFileTypes: true }).catch(() => []))
    if (entry.isDirectory()) await removeTree(join(dir, entry.name));
  for (let tries = 0; ; tries++) {
    try {
      await rmdir(dir);
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") return;
      // A process that was just killed counts until it is reaped.
      if (code !== "EBUSY" || tries > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
};
