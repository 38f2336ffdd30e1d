import { existsSync } from "node:fs";
import { readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { outcome, run } from "../tools/run.ts";

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

/** Removes a cgroup and all below it, in every hierarchy. Its processes must be gone. */
export const removeCgroups = async (path: string): Promise<void> => {
  for (const dir of await cgroupDirs(path)) await removeTree(dir);
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
