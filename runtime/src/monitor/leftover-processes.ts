import { readdirSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** How long a killed process is waited for. */
const goneMs = 2_000;

/**
 * Kills what works in a container's state directory: a runtime that lost its monitor in the middle of a create goes on,
 * and makes cgroups behind the back of whoever takes the container away.
 */
export const endProcessesIn = async (directory: string): Promise<void> => {
  const end = performance.now() + goneMs;
  for (
    let left = processesIn(directory);
    left.length > 0 && performance.now() < end;
    left = processesIn(directory)
  ) {
    for (const pid of left)
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    await sleep(5);
  }
};

const processesIn = (directory: string): number[] =>
  readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/cwd`) === directory;
      } catch {
        // Gone, or a zombie.
        return false;
      }
    })
    .map(Number);
