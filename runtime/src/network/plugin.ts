import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { basename, join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { startProgram } from "../linux/start-program.ts";
import { failureOf } from "./plan.ts";

const STDOUT_MAX = 1024 * 1024;
const STDERR_MAX = 64 * 1024;
/** How long a killed plugin's pipes may stay open in the hands of what it left behind. */
const DRAIN_MS = 1_000;

/** A plugin that ran and failed; `code` is its own, if it gave one (CNI specification, section 5). */
export class PluginFailure extends RuntimeError {
  readonly pluginCode: number | undefined;
  constructor(message: string, pluginCode: number | undefined) {
    super("unavailable", message);
    this.name = "PluginFailure";
    this.pluginCode = pluginCode;
  }
}

/** Path of a plugin: the first executable of that name in the directories; undefined when there is none. */
export const findPlugin = async (type: string, binDirs: string[]): Promise<string | undefined> => {
  for (const dir of binDirs) {
    const path = join(dir, type);
    try {
      await access(path, constants.X_OK);
      return path;
    } catch {
      // The next directory may have it.
    }
  }
  return undefined;
};

/**
 * Runs a plugin (CNI specification, section 3) and returns what it printed. It gets a process group of its own,
 * which is killed as a whole when the signal aborts.
 */
export const runPlugin = (...plugin: Parameters<typeof run>): Promise<string> => {
  const [path, env] = plugin;
  return span(`cni ${basename(path)} ${env.CNI_COMMAND ?? ""}`, {}, () => run(...plugin));
};

const run = async (
  path: string,
  env: Record<string, string>,
  stdin: string,
  what: string,
  signal: AbortSignal,
): Promise<string> => {
  if (signal.aborted) throw stopped(what, signal);
  const child = startProgram(path, [], {
    cwd: "/",
    detached: true,
    env: { ...inherited(), ...env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  let why: RuntimeError | undefined;
  const kill = (reason: RuntimeError) => {
    why ??= reason;
    killGroup(child.pid);
  };
  const abort = () => kill(stopped(what, signal));
  signal.addEventListener("abort", abort, { once: true });
  const stdout: Buffer[] = [];
  let received = 0;
  child.stdout.on("data", (chunk: Buffer) => {
    received += chunk.length;
    if (received <= STDOUT_MAX) stdout.push(chunk);
    else kill(new RuntimeError("unavailable", `Cannot ${what}: it printed more than ${STDOUT_MAX} bytes`));
  });
  let stderr = Buffer.alloc(0);
  child.stderr.on("data", (chunk: Buffer) => {
    stderr = Buffer.concat([stderr, chunk]).subarray(-STDERR_MAX);
  });
  // A plugin need not read its input (EPIPE).
  child.stdin.on("error", () => {});
  child.stdin.end(stdin);
  let drain: NodeJS.Timeout | undefined;
  try {
    const status = await new Promise<string>((resolve, reject) => {
      child.once("error", (error) =>
        reject(new RuntimeError("unavailable", `Cannot ${what}: ${error.message}`, { cause: error })),
      );
      child.once("exit", (_code, signalName) => {
        // One that somebody killed: what it had just started (iptables) must not go on behind the next DEL.
        if (signalName !== null) killGroup(child.pid);
        // What it left behind must not hold up the pod.
        drain = setTimeout(() => {
          child.stdout.destroy();
          child.stderr.destroy();
        }, DRAIN_MS);
      });
      child.once("close", (code, signalName) => resolve(signalName ?? String(code)));
    });
    if (why !== undefined) throw why;
    const output = Buffer.concat(stdout).toString("utf8");
    if (status === "0") return output;
    const failure = failureOf(output, stderr.toString("utf8"));
    throw new PluginFailure(`Cannot ${what}: ${failure.message} (exit ${status})`, failure.code);
  } finally {
    clearTimeout(drain);
    signal.removeEventListener("abort", abort);
  }
};

const killGroup = (pid: number | undefined): void => {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // It has ended.
  }
};

const stopped = (what: string, signal: AbortSignal): RuntimeError => {
  const late = signal.reason instanceof Error && signal.reason.name === "TimeoutError";
  return late
    ? new RuntimeError("deadline-exceeded", `Cannot ${what}: it took too long`)
    : new RuntimeError("cancelled", `Cannot ${what}: the call was cancelled`);
};

/** Our environment without leftovers of a caller's CNI. */
const inherited = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("CNI_")));
