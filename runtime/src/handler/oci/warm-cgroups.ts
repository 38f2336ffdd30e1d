import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type CgroupLayout, readCgroups } from "../../stats/layout.ts";

/** For about as long the kernel's lock stays quick after a move (an RCU grace period). */
const QUICK_MS = 4;

/**
 * Makes the runtime's moves between cgroups quick. The first move after a pause waits until all CPUs have passed by (a
 * grace period of RCU, 8 ms and more), those right after it take microseconds. So we make a move that changes nothing,
 * this process to the cgroup that it is in, while the runtime is still starting: it finds the way open. 10 of the 30 ms of
 * `runc create` were that wait. Mere help: nothing depends on it.
 */
export const cgroupWarmer = (layout: CgroupLayout): (() => void) => {
  let underWay = false;
  let last = Number.NEGATIVE_INFINITY;
  return () => {
    if (underWay || performance.now() - last < QUICK_MS) return;
    // Read each time: somebody may have moved us.
    const ours = readCgroups(process.pid, layout);
    const directory = ours.pids ?? ours[""];
    if (directory === undefined) return;
    underWay = true;
    writeFile(join(directory, "cgroup.procs"), String(process.pid))
      // A cgroup that may hold no processes refuses, having waited all the same.
      .catch(() => {})
      .finally(() => {
        underWay = false;
        last = performance.now();
      });
  };
};
