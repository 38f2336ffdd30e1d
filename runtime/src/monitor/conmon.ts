import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { identify, type ProcessId } from "../linux/process.ts";
import { startProgram } from "../linux/start-program.ts";

/** One container as conmon (2.1.6) shall watch it. */
export type MonitorPlan = {
  id: string;
  /** The container's state directory: bundle, pid files, attach socket and control FIFOs are in it. */
  directory: string;
  exitDirectory: string;
  /** Runtime command and its global options. */
  runtime: string;
  runtimeOptions: string[];
  systemdCgroup: boolean;
  tty: boolean;
  stdin: boolean;
  stdinOnce: boolean;
  /** "": discard. */
  logPath: string;
  /** Directory of a memory image: the runtime is told to `restore`, and the container runs at once. */
  restoreFrom?: string;
};

/** Files of conmon in the container's state directory. */
export const monitorFiles = (directory: string) => ({
  pid: join(directory, "pid"),
  monitorPid: join(directory, "conmon.pid"),
  attach: join(directory, "attach"),
  control: join(directory, "ctl"),
  oom: join(directory, "oom"),
});

/** The command line of conmon(8). */
export const monitorArguments = (plan: MonitorPlan): string[] => {
  const files = monitorFiles(plan.directory);
  return [
    ...["--cid", plan.id, "--cuuid", plan.id, "--name", plan.id],
    ...["--bundle", plan.directory, "--full-attach"],
    ...["--container-pidfile", files.pid, "--conmon-pidfile", files.monitorPid],
    ...["--exit-dir", plan.exitDirectory],
    ...["--log-path", plan.logPath === "" ? "none" : `k8s-file:${plan.logPath}`],
    // A log is not worth an fsync at each exit: what a crash of the whole node may lose is its last seconds.
    "--no-sync-log",
    ...["--log-level", "error"],
    ...["--runtime", plan.runtime],
    ...plan.runtimeOptions.flatMap((option) => ["--runtime-arg", option]),
    ...(plan.systemdCgroup ? ["--systemd-cgroup"] : []),
    ...(plan.tty ? ["--terminal"] : []),
    ...(plan.stdin ? ["--stdin"] : []),
    ...(plan.stdin && !plan.stdinOnce ? ["--leave-stdin-open"] : []),
    ...(plan.restoreFrom === undefined
      ? []
      : ["--restore", plan.restoreFrom, "--runtime-opt", "--file-locks"]),
  ];
};

const Report = z.object({ pid: z.number(), message: z.string().optional() });

/** What conmon says on its sync pipe: a process, or the runtime's own words on why there is none. */
export const parseReport = (text: string): { pid: number } | { failure: string } => {
  if (text.trim() === "") return { failure: "" };
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return { failure: text.trim() };
  }
  const report = Report.safeParse(json);
  if (!report.success) return { failure: text.trim() };
  const { pid, message } = report.data;
  return pid > 0 ? { pid } : { failure: message?.trim() ?? "" };
};

export type Monitored = { process: ProcessId | undefined; pid: number; monitor: ProcessId | undefined };

/**
 * Starts conmon, which runs the runtime's `create` or `restore`, and waits for what came of it. conmon forks itself into a session
 * of its own, so it outlives this process. Rejects on abort once the runtime is through; the caller then removes the container.
 */
export const startMonitor = async (
  conmon: string,
  plan: MonitorPlan,
  signal: AbortSignal,
): Promise<Monitored | { failure: string }> => {
  if (plan.logPath.includes(":"))
    throw new RuntimeError(
      "invalid-argument",
      `Cannot log to "${plan.logPath}": the monitor takes no path with ":"`,
    );
  if (plan.logPath !== "") await mkdir(dirname(plan.logPath), { recursive: true });
  signal.throwIfAborted();
  const files = monitorFiles(plan.directory);
  const child = startProgram(conmon, monitorArguments(plan), {
    // conmon leaves its file `oom` in the working directory, the socket for a console in TMPDIR.
    cwd: plan.directory,
    env: {
      PATH: process.env.PATH,
      XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR,
      TMPDIR: plan.exitDirectory.length < 80 ? plan.exitDirectory : "/tmp",
      _OCI_SYNCPIPE: "3",
    },
    detached: true,
    stdio: ["ignore", "ignore", "pipe", "pipe"],
  });
  const errors = collect(child.stderr!, 16_384, false);
  const report = collect(child.stdio[3] as Readable, 65_536, true);
  // The process that we started ends as soon as it has forked the monitor; only a failure to start is news.
  const failed = new Promise<never>((_, reject) => {
    child.once("error", (error) =>
      reject(
        new RuntimeError("failed-precondition", `Cannot start the monitor: ${error.message}`, {
          cause: error,
        }),
      ),
    );
  });
  failed.catch(() => {});
  // A runtime that was killed half-way leaves what nobody knows of, so it gets the time to finish (some 40 ms).
  const given = patience(signal);
  const outcome = parseReport(
    await Promise.race([report, failed, given.promise]).finally(() => {
      given.end();
      child.stdio[3]!.destroy();
    }),
  );
  signal.throwIfAborted();
  if ("failure" in outcome) return { failure: outcome.failure || (await errors).trim() };
  child.stderr!.destroy();
  const monitorPid = Number(await readFile(files.monitorPid, "utf8"));
  return { pid: outcome.pid, process: identify(outcome.pid), monitor: identify(monitorPid) };
};

/** The first line (`line`), or all until the end; never more than `limit` bytes. */
const collect = (stream: Readable, limit: number, line: boolean): Promise<string> =>
  new Promise((resolve) => {
    let text = "";
    const end = () => {
      // conmon keeps its end of the sync pipe open for as long as it lives: ours must not stay with us.
      stream.destroy();
      resolve(text);
    };
    stream.setEncoding("utf8");
    stream.on("data", (chunk: string) => {
      text += chunk;
      if (text.length >= limit || (line && chunk.includes("\n"))) end();
    });
    stream.on("end", end);
    stream.on("error", end);
    stream.on("close", end);
  });

/** How long a runtime may take to come to an end of its own after the caller gave up. */
const GRACE_MS = 5_000;

const patience = (signal: AbortSignal) => {
  const given = Promise.withResolvers<never>();
  let timer: NodeJS.Timeout | undefined;
  const abort = () => {
    timer = setTimeout(() => given.reject(signal.reason), GRACE_MS);
  };
  signal.addEventListener("abort", abort, { once: true });
  given.promise.catch(() => {});
  return {
    promise: given.promise,
    end: () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    },
  };
};
