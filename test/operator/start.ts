import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode } from "@bulkhead/lib/std/errors.ts";

/** The operator as a process of this machine. */
export type Operator = {
  child: ChildProcess;
  /** HOST:PORT of /metrics. */
  address: string;
  /** All that it logged. */
  lines: string[];
  kill(signal: NodeJS.Signals): Promise<void>;
};

/** Starts the operator against an API server; it dies with this process. Resolves once it serves its metrics. */
export const startOperator = async (
  kubeconfig: string,
  namespace: string,
  ...flags: string[]
): Promise<Operator> => {
  const child = spawn(
    "setpriv",
    [
      ...["--pdeathsig", "KILL", "--", process.execPath],
      ...[join(import.meta.dirname, "../../operator/src/main.ts"), "run", "--kubeconfig", kubeconfig],
      ...["--namespace", namespace, "--metrics-address", "127.0.0.1:0"],
      ...["--page-address", "127.0.0.1:0", "--log-level", "debug", ...flags],
    ],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  const lines: string[] = [];
  const { promise: address, resolve, reject } = Promise.withResolvers<string>();
  child.on("exit", () => reject(new Error(`the operator ended: ${lines.slice(-5).join("\n")}`)));
  createInterface({ input: child.stderr }).on("line", (line) => lines.push(line));
  createInterface({ input: child.stdout }).on("line", (line) => {
    lines.push(line);
    const entry = line.startsWith("{") ? JSON.parse(line) : {};
    if (entry.msg === "started") resolve(entry.address);
  });
  return {
    child,
    address: await address,
    lines,
    kill: async (signal) => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill(signal);
      await exited;
    },
  };
};

/** Waits until `read` gives something that `holds`; an object that is not there gives undefined. */
export const eventually = async <T>(
  what: string,
  read: () => Promise<T>,
  holds: (value: T | undefined) => boolean,
  ms = 15_000,
): Promise<T> => {
  const deadline = Date.now() + ms;
  for (;;) {
    const value = await read().catch((error: unknown) => {
      if (hasCode(error, "not-found")) return undefined;
      throw error;
    });
    if (holds(value)) return value as T;
    if (Date.now() > deadline)
      throw new Error(`not within ${ms} ms: ${what}: ${JSON.stringify(value, null, 1)}`);
    await sleep(50);
  }
};
