import { spawn } from "node:child_process";
import { mkdir, open, readdir, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { startTime } from "./record.ts";

/** In the environment of every process of a cluster that runs on this machine: it is how they are found again. */
const marker = "BULKHEAD_CLUSTER";

/** A process of a cluster. */
export type ClusterProcess = { pid: number; component: string };

/** A program that outlives us. */
export type Daemon = {
  component: string;
  argv: readonly string[];
  argv0?: string;
  log: string;
  env?: Record<string, string>;
};

/** Starts a program that outlives us, with its output in a file. */
export const startDaemon = async (cluster: string, daemon: Daemon): Promise<number> => {
  await mkdir(dirname(daemon.log), { recursive: true });
  await using log = await open(daemon.log, "a");
  const [program = "", ...args] = daemon.argv;
  const child = spawn(program, args, {
    detached: true,
    cwd: "/",
    stdio: ["ignore", log.fd, log.fd],
    env: { ...process.env, ...daemon.env, [marker]: `${cluster}/${daemon.component}` },
    ...(daemon.argv0 === undefined ? {} : { argv0: daemon.argv0 }),
  });
  await new Promise<void>((resolve, reject) => {
    child.once("spawn", resolve);
    child.once("error", (error) =>
      reject(new RuntimeError("unavailable", `Cannot start ${daemon.component}: ${messageOf(error)}`)),
    );
  });
  child.unref();
  return child.pid!;
};

/** The processes of a cluster on this machine, found by their environment: none can be forgotten. */
export const clusterProcesses = async (cluster: string): Promise<ClusterProcess[]> => {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) => {
      const environ = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
      const value = environ.split("\0").find((entry) => entry.startsWith(`${marker}=${cluster}/`));
      return value === undefined
        ? undefined
        : { pid: Number(pid), component: value.slice(marker.length + cluster.length + 2) };
    }),
  );
  return found.filter((each) => each !== undefined);
};

/** Ends processes: SIGTERM first, SIGKILL after `grace` milliseconds. Returns when all are gone. */
export const endProcesses = async (processes: readonly { pid: number }[], grace: number): Promise<void> => {
  await Promise.all(
    processes.map(async ({ pid }) => {
      const started = await startTime(pid);
      if (started === undefined) return;
      const alive = async (): Promise<boolean> => (await startTime(pid)) === started;
      const until = Date.now() + grace;
      send(pid, grace > 0 ? "SIGTERM" : "SIGKILL");
      while ((await alive()) && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
      while (await alive()) {
        send(pid, "SIGKILL");
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }),
  );
};

const send = (pid: number, signal: NodeJS.Signals): void => {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already, which is what was asked for.
  }
};
