import { readFile } from "node:fs/promises";
import { type Process, readProcesses } from "../processes.ts";

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

/** Pss: what is shared with others is counted in part. 0 for a process that ended. */
async function proportionalBytes(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, "utf8").catch(() => "");
  return Number(/^Pss:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
}
