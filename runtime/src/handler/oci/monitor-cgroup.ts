import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type CgroupLayout, cgroupAt } from "../../stats/layout.ts";

/** The hierarchies that matter: systemd ends units by one, memory is charged by the other. */
const CONTROLLERS = ["name=systemd", "memory", ""];

/** Moves a monitor to the cgroup of monitors, which is made when it is not there. */
export const moveMonitor = async (pid: number, path: string, layout: CgroupLayout): Promise<void> => {
  const directories = cgroupAt(path, layout);
  for (const controller of CONTROLLERS) {
    const directory = directories[controller];
    if (directory === undefined) continue;
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, "cgroup.procs"), String(pid));
  }
};
