import { readdir, readFile } from "node:fs/promises";
import type { Engine } from "./engines.ts";

/** Proportional set size of the daemon and of everything that it runs beside the workloads, in KiB. */
export async function pss(engine: Engine): Promise<{ daemon: number; others: number }> {
  let daemon = 0;
  let others = 0;
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const pid = Number(entry);
    const argv = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
    if (pid !== engine.pid && !engine.owns(argv)) continue;
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, "utf8").catch(() => "");
    const size = Number(/^Pss:\s+(\d+)/m.exec(rollup)?.[1] ?? 0);
    if (pid === engine.pid) daemon += size;
    else others += size;
  }
  return { daemon, others };
}
