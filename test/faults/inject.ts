import { open, readdir, rm, statfs } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { outcome } from "../tools/run.ts";
import type { Hits } from "./ledger.ts";
import type { Node } from "./node.ts";
import type { Fault, Victim } from "./plan.ts";
import { type Process, processesOf } from "./traces.ts";

const isVictim = (which: Victim, { argv, cwd }: Process, node: Node): boolean => {
  const [program = "", ...rest] = argv;
  const named = (name: string): boolean => program === name || program.endsWith(`/${name}`);
  switch (which) {
    case "conmon":
      return named("conmon");
    case "runc":
      // The command line, not the container's own process, which still has the name of "runc init" for a moment.
      return (named("runc") || rest[0]?.endsWith("/runc") === true) && !rest.includes("init");
    case "cni":
      return (
        ["bridge", "portmap", "host-local"].some(named) || rest[0]?.includes(`${node.disk}/cni/`) === true
      );
    case "holder":
      return program === "/pause";
    case "program":
      return program === "sh" && rest[0] === "-c";
    case "reaper":
      return named("bulkhead-exec-reaper");
    case "shim":
      return named("containerd-shim-runsc-v1");
    case "sandbox":
      return program.includes("runsc") && rest.some((each) => each === "boot" || each === "gofer");
    default:
      return cwd === "";
  }
};

const idPattern = /[0-9a-f]{64}/g;

/** Kills one process of the kind, waiting for one to come; what it belonged to is written down. */
const killOne = async (node: Node, which: Victim, lasts: number, hits: Hits): Promise<void> => {
  for (const end = Date.now() + lasts; Date.now() < end; await sleep(15)) {
    const found = (await processesOf(node)).filter(
      (each) => each.state !== "Z" && isVictim(which, each, node),
    );
    const victim = found[0];
    if (victim === undefined) continue;
    const cgroup = await cgroupOf(victim.pid);
    const ids = [...`${victim.argv.join(" ")} ${victim.cwd} ${cgroup}`.matchAll(idPattern)].map(([id]) => id);
    for (const id of ids) (which === "conmon" ? hits.monitors : hits.processes).add(id);
    try {
      process.kill(victim.pid, "SIGKILL");
    } catch {
      continue;
    }
    return;
  }
};

const cgroupOf = async (pid: number): Promise<string> =>
  (await outcome(["cat", `/proc/${pid}/cgroup`])).stdout;

/** Fills a file system to its last block. */
const fill = async (dir: string, path: string): Promise<void> => {
  await using file = await open(path, "w");
  const { bfree, bsize } = await statfs(dir);
  const chunk = Buffer.alloc(1 << 20, 1);
  for (let left = bfree * bsize; left > 0; left -= chunk.length)
    await file.write(chunk).catch(() => {
      left = 0;
    });
};

/** Makes a fault happen, and takes it back when its time is over. Starts of the daemon are the caller's. */
export const inject = async (
  node: Node,
  fault: Fault,
  registryPid: number,
  hits: Hits,
  restart: () => void,
): Promise<void> => {
  switch (fault.what) {
    case "daemon":
      await node.end(fault.signal);
      await sleep(Math.min(fault.lasts, 800));
      return restart();
    case "kill":
      return await killOne(node, fault.victim, fault.lasts, hits);
    case "cni":
    case "runc": {
      node.order(fault.what, { [fault.command]: fault.how });
      await sleep(fault.lasts);
      return await rm(join(node.disk, "modes", `${fault.what}.${fault.command}`), { force: true });
    }
    case "full": {
      const dir = fault.where === "state" ? node.state : node.root;
      const path = join(dir, "filler");
      await fill(dir, path);
      await sleep(fault.lasts);
      return await rm(path, { force: true });
    }
    case "read-only": {
      // A file that is open for writing may refuse it: then there is no fault.
      await outcome(["mount", "-o", "remount,ro", node.state]);
      await sleep(fault.lasts);
      await outcome(["mount", "-o", "remount,rw", node.state]);
      return;
    }
    case "descriptors": {
      const pid = node.pid();
      if (pid === undefined) return;
      const limit = async (soft: string): Promise<void> =>
        void (await outcome(["prlimit", "--pid", String(pid), `--nofile=${soft}:`]));
      const open = (await readdir(`/proc/${pid}/fd`).catch(() => [])).length;
      await limit(String(open + 3));
      await sleep(fault.lasts);
      return await limit("16384");
    }
    case "registry":
      process.kill(registryPid, "SIGSTOP");
      await sleep(fault.lasts);
      process.kill(registryPid, "SIGCONT");
      return;
  }
};
