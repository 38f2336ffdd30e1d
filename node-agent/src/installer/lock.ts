import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Host } from "./host.ts";

/** The n-th field of /proc/PID/stat after the command's name, which may hold anything. */
const startTime = async (pid: number): Promise<string | undefined> => {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
};

/**
 * The one lock of a node: while a new agent's pod starts, the old one may still be at work. The file names its
 * holder by pid and start time, so that a holder that was killed holds nothing. It lies on /run: a reboot frees it.
 */
export async function acquireLock(
  host: Host,
  path: string,
  signal: AbortSignal,
  onWait: (holder: string) => void,
): Promise<AsyncDisposable> {
  const at = host.at(path);
  const mine = `${process.pid} ${await startTime(process.pid)}`;
  await mkdir(dirname(at), { recursive: true });
  for (let waited = 0; ; waited++) {
    signal.throwIfAborted();
    const draft = `${at}.${process.pid}`;
    await writeFile(draft, mine);
    try {
      // link(2) fails when the name exists: the file appears with its content or not at all.
      await link(draft, at);
      return { [Symbol.asyncDispose]: () => rm(at, { force: true }) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    } finally {
      await rm(draft, { force: true });
    }
    const holder = await readFile(at, "utf8").catch(() => "");
    const [pid = "", started] = holder.split(" ");
    if (holder !== "" && (holder === mine || (await startTime(Number(pid))) !== started)) {
      await rm(at, { force: true });
      continue;
    }
    if (waited % 30 === 0) onWait(holder);
    await sleep(1000, undefined, { signal });
  }
}
