import { readdir, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

/** A process of the node, by proc(5). */
export type Process = { pid: number; parent: number; argv: string[] };

/** Every process of the node. One that ends meanwhile is left out. */
export async function readProcesses(): Promise<Process[]> {
  const pids = (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid): Promise<Process | undefined> => {
      const text = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
      if (text === "") return undefined;
      const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
      // The name in parentheses may hold anything.
      const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1] ?? 0);
      return { pid: Number(pid), parent, argv: text.replace(/\0$/, "").split("\0") };
    }),
  );
  return found.filter((process) => process !== undefined);
}

/** Those that have `word` on their command line. */
export async function processesNaming(word: string): Promise<Process[]> {
  return (await readProcesses()).filter(({ argv }) => argv.some((argument) => argument.includes(word)));
}

/** Kills those that have `word` on their command line. */
export async function killNaming(word: string): Promise<void> {
  for (const { pid } of await processesNaming(word)) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It ended meanwhile.
    }
  }
}

/** Kills what still names a pod that has been ended: shim, hypervisor, file server. False where there is nothing. */
export async function killLeft(podSandboxId: string): Promise<boolean> {
  // Engines' ids are of 64 digits: nobody else has that in a command line. Firecracker's has the first 32.
  if (!/^[0-9a-f]{64}$/.test(podSandboxId)) return false;
  const name = podSandboxId.slice(0, 32);
  if ((await processesNaming(name)).length === 0) return false;
  // They may be ending.
  await sleep(1000);
  await killNaming(name);
  return true;
}
