import { readdir, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { throwExhausted } from "../linux/exhausted.ts";

/** How long a killed process is waited for. */
const GONE_MS = 2_000;

/**
 * Kills the plugins that still work for this pod, and what they started: when a daemon is killed its plugins live on,
 * and one that adds must not go on behind the back of one that deletes. They are known by their environment.
 */
export const endPlugins = async (id: string): Promise<void> => {
  const end = performance.now() + GONE_MS;
  for (
    let left = await pluginsOf(id);
    left.length > 0 && performance.now() < end;
    left = await pluginsOf(id)
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

const pluginsOf = async (id: string): Promise<number[]> => {
  const wanted = `\0CNI_CONTAINERID=${id}\0`;
  const pids = (await readdir("/proc"))
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && pid !== process.pid);
  const found = await Promise.all(
    pids.map(async (pid) => {
      // That of a zombie is empty. A pod's process that says the same harms its own pod alone.
      const environment = await readFile(`/proc/${pid}/environ`, "latin1").catch((error: unknown) => {
        throwExhausted(error);
        return "";
      });
      return `\0${environment}`.includes(wanted) ? [pid] : [];
    }),
  );
  return found.flat();
};
