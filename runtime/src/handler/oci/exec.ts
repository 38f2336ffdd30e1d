import { closeSync, rmSync, writeFileSync } from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import { type Duplex, type Readable, Writable } from "node:stream";
import { ReadStream } from "node:tty";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { makePipe, setWindowSize, takeDescriptor } from "../../linux/descriptor.ts";
import type { Linux } from "../../linux/linux.ts";
import { identify, isAlive, readProcess } from "../../linux/process.ts";
import { startProgram } from "../../linux/start-program.ts";
import { processesOf } from "../../stats/cgroup.ts";
import type { CgroupPaths } from "../../stats/layout.ts";
import type { ExecProcess, ExecRequest } from "../handler.ts";
import { failureInLog, globalOptions, type RuntimeCommand } from "./command.ts";
import { drained, pump } from "./pump.ts";
import { ownPipes } from "./stdio-owner.ts";

export type ExecTarget = { id: string; stateDir: string; cgroup: CgroupPaths; pid: number };

type ExecDeps = { command: RuntimeCommand; reaper: string; linux: Pick<Linux, "kill"> };

let serial = 0;

/**
 * Runs a process in a container: `exec --detach` under our reaper (monitor/exec/reaper.c), which stays for as long
 * as the process does and tells its exit code. Without a terminal the process gets real pipes, which it can open
 * again as /dev/stdout; with one we take the master end out of the reaper.
 */
export const startExec = async (
  target: ExecTarget,
  request: ExecRequest,
  { command, reaper, linux }: ExecDeps,
  signal: AbortSignal,
): Promise<ExecProcess> => {
  signal.throwIfAborted();
  // Short names: the socket's is relative to the directory, because of the 108 bytes that the kernel takes.
  const name = `exec-${process.pid}-${++serial}`;
  const file = (suffix: string) => join(target.stateDir, `${name}.${suffix}`);
  // On tmpfs: some microseconds, where a thread of the pool would cost two switches on a busy node.
  writeFileSync(file("json"), JSON.stringify({ ...request.process, terminal: request.tty }));
  const removeFiles = (): void => {
    try {
      for (const suffix of ["json", "pid", "log", "tty"]) rmSync(file(suffix), { force: true });
    } catch {
      // They go with the container.
    }
  };

  const terminal = request.tty ? [`${name}.tty`] : [];
  const args = [
    ...terminal.flatMap((socket) => ["-t", socket]),
    ...[file("pid"), command.path, ...globalOptions(command, file("log"))],
    ...["exec", "--detach", "--pid-file", file("pid"), "--process", file("json")],
    ...terminal.flatMap((socket) => ["--console-socket", socket]),
    target.id,
  ];
  const stdio = request.tty ? undefined : openPipes(request);
  const start = () =>
    startProgram(reaper, args, {
      cwd: target.stateDir,
      detached: true,
      stdio: [...(stdio?.theirs ?? (["ignore", "ignore", "ignore"] as const)), "pipe"],
    });
  let child: ReturnType<typeof start>;
  try {
    if (stdio) await ownPipes(stdio.theirs, target.pid, request.process.user);
    child = start();
  } catch (error) {
    stdio?.destroy();
    removeFiles();
    throw error;
  } finally {
    stdio?.closeTheirs();
  }
  const reports = child.stdio[3] as Duplex;
  const lines = readReports(reports, (error) => {
    child.once("error", error);
  });

  const first = lines.next();
  const kill = async (pid: number) => killTree(pid, target.cgroup, linux);
  const abandon = () => {
    // The runtime may be just about to start it: let it, and end it then.
    first
      .then((line) => {
        const pid = pidIn(line);
        reports.write("x");
        return pid === undefined ? undefined : kill(pid);
      })
      .catch(() => {})
      .finally(() => {
        stdio?.destroy();
        removeFiles();
      });
  };
  const line = await orAbort(first, signal, abandon);
  const pid = pidIn(line);
  if (pid === undefined) {
    const failure = (await failureInLog(file("log"))) || line || "the runtime gave no reason";
    stdio?.destroy();
    removeFiles();
    throw new RuntimeError("unknown", `Cannot execute in container "${target.id}": ${failure}`);
  }
  removeFiles();

  const code = lines
    .next()
    .then((report) => (/^exited (\d+)$/.exec(report)?.[1] === undefined ? 255 : Number(report.slice(7))));
  if (stdio !== undefined) {
    if (request.stdin && stdio.stdin) feed(request.stdin, stdio.stdin);
    const pumps = [pump(stdio.stdout, request.stdout), pump(stdio.stderr, request.stderr)];
    const exited = code.then(async (value) => {
      await drained(pumps);
      stdio.destroy();
      return value;
    });
    return { exited, resize: async () => {}, kill: () => kill(pid) };
  }

  const master = takeDescriptor(child.pid!, Number(line.split(" ")[2]));
  reports.write("x");
  const console = new ReadStream(master);
  // What a terminal's master end says when the last process has closed the other one.
  console.on("error", () => console.destroy());
  if (request.stdin) feed(request.stdin, console, false);
  const pumps = [pump(console, request.stdout)];
  let open = true;
  const exited = code.then(async (value) => {
    await drained(pumps);
    open = false;
    console.destroy();
    return value;
  });
  return {
    exited,
    async resize(width, height) {
      if (open && !console.destroyed) setWindowSize(master, width, height);
    },
    kill: () => kill(pid),
  };
};

const pidIn = (line: string): number | undefined => {
  const pid = /^started (\d+)/.exec(line)?.[1];
  return pid === undefined ? undefined : Number(pid);
};

/** The reaper's reports, one by one; "" when there are no more. */
const readReports = (stream: Readable, onError: (listener: (error: Error) => void) => void) => {
  const lines: string[] = [];
  const waiting: ((line: string) => void)[] = [];
  let ended = false;
  let rest = "";
  const settle = () => {
    while (waiting.length > 0 && (lines.length > 0 || ended)) waiting.shift()!(lines.shift() ?? "");
  };
  const end = () => {
    ended = true;
    settle();
  };
  stream.setEncoding("latin1");
  stream.on("data", (chunk: string) => {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop()!;
    lines.push(...parts);
    settle();
  });
  stream.on("end", end);
  stream.on("error", end);
  onError((error) => {
    lines.push(error.message);
    end();
  });
  return {
    next: () =>
      new Promise<string>((resolve) => {
        waiting.push(resolve);
        settle();
      }),
  };
};

/** Pipes of a process: its ends as numbers for spawn, ours on the event loop. */
const openPipes = (request: ExecRequest) => {
  const stdin = request.stdin ? makePipe() : undefined;
  const stdout = makePipe();
  const stderr = makePipe();
  const ours = {
    stdin: stdin && new Socket({ fd: stdin.write, readable: false, writable: true }),
    stdout: new Socket({ fd: stdout.read, readable: true, writable: false }),
    stderr: new Socket({ fd: stderr.read, readable: true, writable: false }),
  };
  // Paused until somebody pumps: what a runtime that failed wrote is not the process's output.
  ours.stdout.pause();
  ours.stderr.pause();
  for (const stream of [ours.stdin, ours.stdout, ours.stderr]) stream?.on("error", () => {});
  return {
    ...ours,
    theirs: [stdin?.read ?? ("ignore" as const), stdout.write, stderr.write],
    closeTheirs: () => {
      for (const fd of [stdin?.read, stdout.write, stderr.write]) if (fd !== undefined) closeSync(fd);
    },
    destroy: () => {
      ours.stdin?.destroy();
      ours.stdout.destroy();
      ours.stderr.destroy();
    },
  };
};

/** Copies a client's stdin. A pipe has no half to shut down: its end is its closing, once all was taken. */
const feed = (source: Readable, sink: Socket | ReadStream, closeAtEnd = true): void => {
  const writable = new Writable({
    write(chunk: Buffer, _encoding, done) {
      if (sink.destroyed) return done();
      sink.write(chunk, () => done());
    },
    final(done) {
      if (closeAtEnd) sink.destroy();
      done();
    },
  });
  sink.once("close", () => source.unpipe(writable));
  source.on("error", () => writable.end());
  source.pipe(writable);
};

/**
 * Kills a process that was started in a container and what it started: its session and its descendants. Those that
 * left both are the container's own.
 */
const killTree = async (pid: number, cgroup: CgroupPaths, linux: Pick<Linux, "kill">): Promise<void> => {
  const root = identify(pid);
  const killed = new Set([pid]);
  for (let pass = 0; pass < 10; pass++) {
    const running = [...new Set([pid, ...processesOf(cgroup)])].flatMap((member) => {
      const stat = readProcess(member);
      return stat === undefined || stat.state === "Z" ? [] : [{ pid: member, ...stat }];
    });
    let grown = true;
    while (grown) {
      grown = false;
      for (const member of running)
        if (!killed.has(member.pid) && (killed.has(member.parent) || member.session === pid)) {
          killed.add(member.pid);
          grown = true;
        }
    }
    const victims = running.filter((member) => killed.has(member.pid));
    if (victims.length === 0 || (victims.length === 1 && victims[0]!.pid === pid && root && !isAlive(root)))
      return;
    for (const victim of victims) linux.kill(victim.pid, victim.startTime, 9);
    await new Promise((resolve) => setTimeout(resolve, 2 << pass));
  }
};

const orAbort = <T>(promise: Promise<T>, signal: AbortSignal, aborted: () => void): Promise<T> =>
  new Promise((resolve, reject) => {
    const abort = () => {
      aborted();
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
