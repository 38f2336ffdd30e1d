import { readdir, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * The other half of a canary: what the node sees of it while it runs. A wall that says of itself that it stands may
 * still be another one than the profile promises, and behind a kernel of its own a pod is no process of the node.
 */

export type Outside = {
  /** Processes of the node that run the canary's own command. */
  visible: number;
  /** Flags of the gVisor sandbox that the canary runs in; undefined where there is none. */
  sandbox?: { network: string; platform: string };
  /** Memory of the processes that the pod costs beside its own: sandbox, file servers, shim, monitor. Bytes. */
  overheadBytes: number;
};

/** What gVisor is started with by the profile; undefined: any will do. */
export type GvisorPromise = { network: string; platform?: string };

export type Process = { pid: number; parent: number; argv: string[] };

/** Looks at every process of the node. `names`: ids of the canary's pod and container; `token`: its argument. */
export async function lookOutside(names: readonly string[], token: string): Promise<Outside> {
  const processes = await readProcesses();
  const { visible, sandbox, overhead } = findCanary(processes, names, token);
  const sizes = await Promise.all(overhead.map(({ pid }) => proportionalBytes(pid)));
  return {
    visible,
    ...(sandbox === undefined ? {} : { sandbox }),
    overheadBytes: sizes.reduce((sum, bytes) => sum + bytes, 0),
  };
}

/** Which processes are the canary's, and which the price of its wall. Pure. */
export function findCanary(
  processes: readonly Process[],
  names: readonly string[],
  token: string,
): Pick<Outside, "visible" | "sandbox"> & { overhead: Process[] } {
  const own = processes.filter(({ argv }) => argv.includes(token));
  const sandbox = processes.find(
    ({ argv }) => /(^|\/)runsc-sandbox$/.test(argv[0] ?? "") && names.some((name) => argv.includes(name)),
  );
  const found = new Map<number, Process>();
  const take = (process: Process): void => {
    if (found.has(process.pid) || own.includes(process)) return;
    found.set(process.pid, process);
    for (const child of processes) if (child.parent === process.pid) take(child);
  };
  for (const process of processes)
    if (process.argv.some((argument) => names.some((name) => argument.includes(name)))) take(process);
  return {
    visible: own.length,
    ...(sandbox === undefined
      ? {}
      : {
          sandbox: {
            // runsc leaves out what is its own default.
            network: flagOf(sandbox.argv, "network") ?? "sandbox",
            platform: flagOf(sandbox.argv, "platform") ?? "systrap",
          },
        }),
    overhead: [...found.values()],
  };
}

const flagOf = (argv: readonly string[], name: string): string | undefined =>
  argv.find((argument) => argument.startsWith(`--${name}=`))?.slice(name.length + 3);

/** Checks of a wall that is not the node's own kernel: name → holds. */
export function outsideChecks(outside: Outside, gvisor?: GvisorPromise): [name: string, holds: boolean][] {
  const hidden: [string, boolean] = ["hidden-from-host", outside.visible === 0];
  if (gvisor === undefined) return [hidden];
  const { sandbox } = outside;
  return [
    hidden,
    ["runs-in-runsc", sandbox !== undefined],
    ["network-as-profiled", sandbox?.network === gvisor.network],
    ...(gvisor.platform === undefined
      ? []
      : [["platform-as-profiled", sandbox?.platform === gvisor.platform] as [string, boolean]]),
  ];
}

/** Kills what still names a pod that has been ended: shim, hypervisor, file server. False where there is nothing. */
export async function killLeft(podSandboxId: string): Promise<boolean> {
  // Engines' ids are of 64 digits: nobody else has that in a command line. Firecracker's has the first 32.
  if (!/^[0-9a-f]{64}$/.test(podSandboxId)) return false;
  const name = podSandboxId.slice(0, 32);
  const naming = async (): Promise<Process[]> =>
    (await readProcesses()).filter(({ argv }) => argv.some((argument) => argument.includes(name)));
  if ((await naming()).length === 0) return false;
  // They may be ending.
  await sleep(1000);
  for (const { pid } of await naming()) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has just ended.
    }
  }
  return true;
}

/** One that ends meanwhile is left out. */
async function readProcesses(): Promise<Process[]> {
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

/** Pss: what is shared with others is counted in part. 0 for a process that ended. */
async function proportionalBytes(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, "utf8").catch(() => "");
  return Number(/^Pss:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
}
