import { existsSync } from "node:fs";
import { mkdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import type { Logger } from "pino";
import { throwExhausted } from "../../linux/exhausted.ts";
import type { Linux } from "../../linux/linux.ts";
import { identify, isAlive, type ProcessId, readProcess } from "../../linux/process.ts";
import { connectMonitor } from "../../monitor/attach.ts";
import { monitorFiles, startMonitor } from "../../monitor/conmon.ts";
import { reopenLog, resizeTerminal } from "../../monitor/control.ts";
import { type ExitRecord, ExitWatch, readExit } from "../../monitor/exits.ts";
import { endProcessesIn } from "../../monitor/leftover-processes.ts";
import type { Network } from "../../network/network.ts";
import { killCgroup, oomKillsAbove, processesOf, readUsage, wasOomKilled } from "../../stats/cgroup.ts";
import { removeCgroup, specCgroup } from "../../stats/cgroup-removal.ts";
import { type CgroupLayout, type CgroupPaths, cgroupAt, parentOf, readCgroups } from "../../stats/layout.ts";
import type { ContainerRef, Exit, Handler, HandlerEvents, Recovered } from "../handler.ts";
import { checkpointTo, refusal, requireCriu, restoreFiles, resume, specToRestore } from "./checkpoint.ts";
import {
  failureInLog,
  failureOf,
  globalOptions,
  mustRun,
  type RuntimeCommand,
  run,
  runDelete,
} from "./command.ts";
import { startExec } from "./exec.ts";
import { parseFeatures, specVersion } from "./features.ts";
import { removeHolder, startHolder, stopHolder } from "./holder.ts";
import { pastInit } from "./init.ts";
import { moveMonitor } from "./monitor-cgroup.ts";
import {
  awaitedImage,
  type ContainerState,
  fromRecord,
  parseContainerState,
  parseSandboxState,
  refusalOf,
  toRecord,
} from "./state.ts";
import { ownStdio } from "./stdio-owner.ts";
import { cgroupWarmer } from "./warm-cgroups.ts";

export type OciHandlerConfig = {
  name: string;
  revision: string;
  /** Absolute path of runc, crun or youki. */
  path: string;
  /** Global options of the runtime, beside --root and --log. */
  options: string[];
  /** cgroupsPath is SLICE:PREFIX:NAME and systemd makes the cgroups. */
  systemdCgroup: boolean;
  /** Whether containers may be made from CRIU's images. */
  restoreCheckpoints: boolean;
};

export type OciHandlerDeps = {
  linux: Pick<Linux, "kill" | "mount" | "umount" | "connectUnix">;
  events: HandlerEvents;
  network: Pick<Network, "dial">;
  /** Paths of programs: conmon, and the two of ours (monitor/exec/reaper.c, spec/holder-program.ts). */
  programs: { conmon: string; reaper: string; pause: string };
  /** Where the runtime keeps its state (--root). On tmpfs. */
  stateRoot: string;
  /** Where monitors leave exit codes. On tmpfs, one directory for each handler's name. */
  exitDirectory: string;
  cgroup: CgroupLayout;
  /**
   * Cgroup that monitors are moved to, as a path from the root. Not the pod's: its memory limit is the workload's,
   * the OOM killer must not take the one that reports it, and kubelet kills what it finds in a pod's cgroup. Not the
   * daemon's either: systemd ends all that is in a unit's cgroup when the unit stops. undefined: they stay.
   */
  monitorCgroup?: string;
  log: Logger;
};

/** A handler of command lines, with what it takes to let go of it: its containers run on. */
export type OciHandler = Handler & { close(): void };

/** A container whose exit has not been told yet. */
type Watched = {
  sandbox: string;
  stateDir: string;
  process: ProcessId;
  monitor: ProcessId;
  cgroup: CgroupPaths;
  /** OOM kills in the pod's cgroup before there was this container; unknown of one made by an older version. */
  killsBefore?: number | undefined;
};
type Monitored = Pick<
  ContainerRef,
  "id" | "sandbox" | "stateDir" | "tty" | "stdin" | "stdinOnce" | "logPath"
>;
type OomFacts = Pick<Watched, "stateDir" | "cgroup" | "killsBefore">;

type Found = Recovered["containers"] extends Map<string, infer State> ? State : never;

/** How often monitors are looked at. They do not die by themselves; something else must have killed one. */
const SWEEP_MS = 10_000;

/**
 * Runs containers with an OCI runtime's command line (runc, crun, youki), one conmon for each. Nothing that counts
 * is in this process: conmon holds stdio, log and exit code, the kernel holds the rest.
 */
export const createOciHandler = async (
  config: OciHandlerConfig,
  deps: OciHandlerDeps,
): Promise<OciHandler> => {
  const { linux, events, network, programs, cgroup: layout, log } = deps;
  const command: RuntimeCommand = { path: config.path, options: config.options, stateRoot: deps.stateRoot };
  await mkdir(deps.stateRoot, { recursive: true, mode: 0o700 });
  const asked = await run(command, ["features"], AbortSignal.timeout(10_000));
  const features = parseFeatures(asked.stdout);
  const ociVersion = specVersion(asked.stdout);
  const warmCgroups = cgroupWarmer(layout);

  const watched = new Map<string, Watched>();
  const holders = new Map<string, ProcessId>();
  /** Containers without a process whose end was told. */
  const toldEnds = new Set<string>();

  const wasOom = ({ stateDir, cgroup, killsBefore = Infinity }: OomFacts, code: number) =>
    existsSync(monitorFiles(stateDir).oom) ||
    // Where its cgroup is gone, and its monitor came too late to look, the pod's count tells.
    (wasOomKilled(cgroup, layout) ?? (code === 137 && oomKillsAbove(cgroup, layout) > killsBefore));

  const exited = (id: string, record: ExitRecord) => {
    const container = watched.get(id);
    if (container === undefined) return;
    watched.delete(id);
    events.containerExited(id, { ...record, oomKilled: wasOom(container, record.code) });
    checkHolder(container.sandbox);
    // What the runtime keeps of it is of no more use: it goes while the pod's network is taken down.
    deleteSoon(id);
  };

  /** Deletions under way; a failed one is tried again, and told, by `discard`. */
  const deleting = new Map<string, Promise<void>>();
  const deleteSoon = (id: string) => {
    const work = runDelete(command, id, AbortSignal.timeout(15_000))
      .catch((error) => log.debug({ err: error, container: id }, "not deleted yet"))
      .finally(() => deleting.delete(id));
    deleting.set(id, work);
  };

  /** A pod whose holder is gone is over, once all its containers were reported. */
  const checkHolder = (sandbox: string) => {
    const holder = holders.get(sandbox);
    if (holder === undefined || isAlive(holder)) return;
    for (const container of watched.values()) if (container.sandbox === sandbox) return;
    holders.delete(sandbox);
    events.sandboxExited(sandbox, "the process that holds the pod's PID namespace is gone");
  };

  const exits = new ExitWatch(deps.exitDirectory, exited, (error) =>
    log.error({ err: error }, "exit directory cannot be read"),
  );
  await exits.open();

  const watch = (id: string, container: Watched) => {
    watched.set(id, container);
    // After the caller had its answer: a container's exit comes after its creation.
    setImmediate(() => {
      if (watched.get(id) === container)
        exits.add(id).catch((error) => log.error({ err: error, container: id }, "exit cannot be read"));
    });
  };

  const killAll = async (cgroup: CgroupPaths, signo: number): Promise<void> => {
    if (signo === 9 && (await killCgroup(cgroup, layout))) return;
    // What forks while we count is met by the next pass. Other signals are for the process to answer: once is enough.
    for (let pass = 0; pass < (signo === 9 ? 20 : 1); pass++) {
      const running = processesOf(cgroup).flatMap((pid) => {
        const stat = readProcess(pid);
        return stat === undefined || stat.state === "Z" ? [] : [{ pid, startTime: stat.startTime }];
      });
      if (running.length === 0) return;
      for (const { pid, startTime } of running) linux.kill(pid, startTime, signo);
      if (signo === 9) await sleep(5);
    }
  };

  /** The truth is lost with the monitor: nobody will say how the process ends, and nobody reads its output. */
  const lostMonitor = async (id: string, container: Watched): Promise<Exit> => {
    log.warn({ container: id, monitor: container.monitor.pid }, "monitor is gone");
    await killAll(container.cgroup, 9);
    const oomKilled = wasOom(container, 255);
    return { code: 255, finishedAt: BigInt(Date.now()) * 1_000_000n, oomKilled };
  };

  const sweep = async () => {
    for (const [id, container] of [...watched]) {
      if (isAlive(container.monitor)) continue;
      await exits.check(id);
      if (watched.get(id) !== container) continue;
      exits.forget(id);
      const exit = await lostMonitor(id, container);
      if (watched.get(id) !== container) continue;
      watched.delete(id);
      events.containerExited(id, exit);
    }
    for (const sandbox of [...holders.keys()]) checkHolder(sandbox);
  };
  let sweeping = false;
  const sweeper = setInterval(() => {
    if (sweeping) return;
    sweeping = true;
    sweep()
      .catch((error) => log.error({ err: error }, "monitors cannot be looked at"))
      .finally(() => {
        sweeping = false;
      });
  }, SWEEP_MS);
  sweeper.unref();

  /** Takes away all that `create` may have left, by name: a record may know nothing more. */
  const discard = async (
    { id, stateDir, isHalfMade }: { id: string; stateDir: string; isHalfMade: boolean },
    signal: AbortSignal,
  ): Promise<void> => {
    await deleting.get(id);
    await runDelete(command, id, signal);
    await endMonitor(stateDir, signal);
    if (isHalfMade) await endProcessesIn(stateDir);
    // A runtime that hung and went with its monitor may have got this far meanwhile.
    await runDelete(command, id, signal);
    // One that was killed between its first cgroup and its first record knows of neither.
    await removeCgroup(await specCgroup(join(stateDir, "config.json"), id, layout), linux);
    await exits.check(id);
    exits.forget(id);
    watched.delete(id);
    await rm(join(deps.exitDirectory, id), { force: true });
    await removeFiles(stateDir);
  };

  /** Has conmon make the container's process, or restore it, and takes both up; or says why there is none. */
  const monitored = async (
    container: Monitored,
    { owner, restoreFrom }: { owner?: { uid: number; gid: number } | undefined; restoreFrom?: string },
    signal: AbortSignal,
  ): Promise<ContainerState | { refused: string; failure: string }> => {
    const { id, stateDir, tty, stdin, stdinOnce, logPath } = container;
    const runtimeLog = join(stateDir, "runtime.log");
    const { systemdCgroup } = config;
    const { exitDirectory } = deps;
    // conmon runs the runtime's create or restore.
    const verb = restoreFrom === undefined ? "create" : "restore";
    const started = await span(`${basename(command.path)} ${verb}`, {}, () =>
      startMonitor(
        programs.conmon,
        {
          ...{ id, directory: stateDir, exitDirectory, systemdCgroup, tty, stdin, stdinOnce, logPath },
          runtime: command.path,
          runtimeOptions: globalOptions(command, runtimeLog),
          ...(restoreFrom !== undefined && { restoreFrom }),
        },
        signal,
      ),
    );
    if ("failure" in started)
      return {
        refused: await failureInLog(runtimeLog),
        failure: failureOf(started.failure) || "no reason given",
      };
    if (started.process === undefined || started.monitor === undefined)
      return { refused: "", failure: "its process is gone again" };
    if (owner) await ownStdio(started.pid, owner);
    const cgroup = ownCgroups(started.pid, layout);
    const killsBefore = oomKillsAbove(cgroup, layout);
    watch(id, {
      ...{ sandbox: container.sandbox.id, stateDir, cgroup, killsBefore },
      ...{ process: started.process, monitor: started.monitor },
    });
    // Apart from the way of a start: in v1 each move waits for all CPUs to pass by.
    if (deps.monitorCgroup !== undefined)
      moveMonitor(started.monitor.pid, deps.monitorCgroup, layout).catch((error) =>
        log.warn({ err: error, container: id }, "monitor stays in the daemon's cgroup"),
      );
    return {
      ...{ process: toRecord(started.process), monitor: toRecord(started.monitor) },
      ...{ cgroup, killsBefore },
    };
  };

  /** Starts what waits for it by restoring its processes, which run at once. */
  const restore = async (
    container: ContainerRef,
    images: string,
    signal: AbortSignal,
  ): Promise<ContainerState> => {
    const { id, stateDir } = container;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => discard({ id, stateDir, isHalfMade: true }, AbortSignal.timeout(15_000)));
    const made = await monitored(container, { restoreFrom: images }, signal);
    if ("failure" in made) {
      const { message } = await refusal(join(stateDir, restoreFiles.log), made.refused || made.failure);
      throw new RuntimeError("unknown", `Cannot restore container "${id}": ${message}`);
    }
    undo.move();
    return made;
  };

  return {
    name: config.name,
    kind: "oci",
    revision: config.revision,
    features: () => features,
    close: () => {
      clearInterval(sweeper);
      exits.close();
      watched.clear();
    },

    async runSandbox(pod, signal) {
      // One whose pod names no parent is in a cgroup with all others of these.
      const shared = pod.config !== undefined && !pod.config.linux?.cgroupParent;
      const parent = shared ? undefined : parentOf(pod.spec.linux?.cgroupsPath);
      const state = {
        netns: pod.namespaces.net ?? "",
        cgroup: parent === undefined ? {} : cgroupAt(parent, layout),
      };
      // Namespaces that files hold need no process.
      if (pod.spec.process === undefined) return state;
      const { systemdCgroup } = config;
      const how = { command, systemdCgroup, program: programs.pause, linux };
      const holder = await startHolder(pod.id, pod.stateDir, { ...pod.spec, ociVersion }, how, signal);
      holders.set(pod.id, holder.process);
      return {
        ...state,
        holder: toRecord(holder.process),
        pid: holder.process.pid,
        pidNamespace: holder.pidNamespace,
      };
    },

    async stopSandbox(pod, signal) {
      holders.delete(pod.id);
      const { holder } = parseSandboxState(pod.state);
      if (holder !== undefined) await stopHolder(fromRecord(holder), linux, signal);
    },

    async removeSandbox(pod, signal) {
      holders.delete(pod.id);
      await removeHolder(pod.id, pod.stateDir, { command, linux }, signal);
    },

    async create(container, signal) {
      const { id, stateDir, spec, tty, restoreFrom } = container;
      if (restoreFrom !== undefined) await requireCriu(command, "restore", signal);
      await using undo = new AsyncDisposableStack();
      undo.defer(() => discard({ id, stateDir, isHalfMade: true }, AbortSignal.timeout(15_000)));
      warmCgroups();
      const { process, ...rest } = restoreFrom === undefined ? spec : await specToRestore(spec, stateDir);
      const terminal = process && { process: { ...process, terminal: tty } };
      await writeFile(join(stateDir, "config.json"), JSON.stringify({ ...rest, ociVersion, ...terminal }));
      if (restoreFrom !== undefined) {
        undo.move();
        return { restoreFrom };
      }
      const made = await monitored(container, { owner: tty ? undefined : process?.user }, signal);
      if ("failure" in made) {
        // A command that is not there, a place that nothing can be mounted on: asked again, the answer is the same.
        // Told by start, it ends a pod that shall not be restarted, as under any other engine.
        if (made.refused !== "") return { refused: made.refused };
        throw new RuntimeError("unknown", `Cannot create container "${id}": ${made.failure}`);
      }
      undo.move();
      return made;
    },

    async start(container, signal) {
      const images = awaitedImage(container.state);
      if (images !== undefined) return await restore(container, images, signal);
      const refused = refusalOf(container.state);
      if (refused !== undefined) throw new RuntimeError("unknown", `Cannot start the container: ${refused}`);
      await mustRun(command, ["start", container.id], `start container "${container.id}"`, signal);
      return undefined;
    },

    async kill(container, signo, all, signal) {
      if (awaitedImage(container.state) !== undefined && signo === 9) {
        const { id, stateDir } = container;
        await discard({ id, stateDir, isHalfMade: true }, signal);
      }
      if (refusalOf(container.state) !== undefined || awaitedImage(container.state) !== undefined) {
        if (signo === 9 && !toldEnds.has(container.id)) {
          toldEnds.add(container.id);
          const finishedAt = BigInt(Date.now()) * 1_000_000n;
          events.containerExited(container.id, { code: 128 + signo, finishedAt, oomKilled: false });
        }
        return;
      }
      const state = parseContainerState(container.state);
      if (state === undefined) {
        await run(command, ["kill", container.id, String(signo)], signal);
        return;
      }
      // One that could not be taken up after a restart: its end must be told all the same.
      if (signo === 9 && !watched.has(container.id)) {
        const found = await lookAgain(container);
        if (found.state === "exited") events.containerExited(container.id, found.exit);
      }
      if (all) return killAll(state.cgroup, signo);
      const { pid, startTime } = fromRecord(state.process);
      if (signo !== 9) await pastInit(pid, signal);
      linux.kill(pid, startTime, signo);
    },

    async remove(container, signal) {
      toldEnds.delete(container.id);
      const { id, stateDir } = container;
      await discard({ id, stateDir, isHalfMade: parseContainerState(container.state) === undefined }, signal);
    },

    async update(container, resources, signal) {
      // From a file: crun opens what it shall read by name, and the pipes that we give a child have none.
      const file = join(container.stateDir, "resources.json");
      await writeFile(file, JSON.stringify(resources ?? {}));
      const what = `update container "${container.id}"`;
      try {
        await mustRun(command, ["update", "--resources", file, container.id], what, signal);
      } finally {
        await rm(file, { force: true });
      }
    },

    checkpoint: (container, directory, saveRoot, signal) =>
      checkpointTo(command, container, directory, saveRoot, signal),
    ...(config.restoreCheckpoints && { restores: "criu" as const }),

    async stats(container) {
      const state = parseContainerState(container.state);
      return state && readUsage(state.cgroup, layout);
    },

    async sandboxStats(pod) {
      const { cgroup } = parseSandboxState(pod.state);
      return readUsage(cgroup, layout);
    },

    async reopenLog(container, signal) {
      if (container.logPath === "") return;
      assertRunning(container, "reopen the log");
      await reopenLog(monitorFiles(container.stateDir).control, container.logPath, signal);
    },

    async exec(container, request, signal) {
      const state = assertRunning(container, "execute");
      const { cgroup, process } = state;
      const target = { id: container.id, stateDir: container.stateDir, cgroup, pid: process.pid };
      warmCgroups();
      return startExec(target, request, { command, reaper: programs.reaper, linux }, signal);
    },

    async attach(container, signal) {
      assertRunning(container, "attach");
      const files = monitorFiles(container.stateDir);
      const connection = await connectMonitor(files.attach, linux, signal);
      return {
        stdout: connection.stdout,
        ...(container.stdin ? { stdin: connection.stdin } : {}),
        ...(container.tty ? {} : { stderr: connection.stderr }),
        async resize(width, height) {
          if (container.tty) await resizeTerminal(files.control, width, height);
        },
        close: connection.close,
      };
    },

    portForward: (pod, port, signal) => network.dial(parseSandboxState(pod.state).netns, port, signal),

    async recover(pod, containers, signal) {
      const { holder } = parseSandboxState(pod.state);
      const process = holder && fromRecord(holder);
      const sandboxAlive = process === undefined || isAlive(process);
      if (process !== undefined && sandboxAlive) holders.set(pod.id, process);
      const found: Recovered["containers"] = new Map();
      for (const container of containers) {
        signal.throwIfAborted();
        found.set(container.id, await lookAgain(container));
      }
      return { sandboxAlive, containers: found };
    },
  };

  /** What a container is now, by what conmon, the kernel and the runtime say. */
  async function lookAgain(container: ContainerRef): Promise<Found> {
    const { id, stateDir } = container;
    if (refusalOf(container.state) !== undefined) return { state: "created" };
    if (awaitedImage(container.state) !== undefined) {
      if (!existsSync(monitorFiles(stateDir).monitorPid)) return { state: "created" };
      // The daemon ended in the middle of a restore: what came of it nobody has told, and nobody was promised.
      await discard({ id, stateDir, isHalfMade: true }, AbortSignal.timeout(15_000));
      const finishedAt = BigInt(Date.now()) * 1_000_000n;
      return { state: "exited", exit: { code: 255, finishedAt, oomKilled: false } };
    }
    const state = parseContainerState(container.state);
    if (state === undefined) return { state: "unknown" };
    const known: Watched = {
      ...{ sandbox: container.sandbox.id, stateDir, cgroup: state.cgroup, killsBefore: state.killsBefore },
      process: fromRecord(state.process),
      monitor: fromRecord(state.monitor),
    };
    const monitorAlive = isAlive(known.monitor);
    // After the monitor: one that has just ended has left its file.
    const exit = await readExit(deps.exitDirectory, id);
    if (exit !== undefined)
      return { state: "exited", exit: { ...exit, oomKilled: wasOom(known, exit.code) } };
    if (!monitorAlive) return { state: "exited", exit: await lostMonitor(id, known) };
    watch(id, known);
    await resume(command, container);
    return { state: (await isWaiting(id)) ? "created" : "running" };
  }

  async function isWaiting(id: string): Promise<boolean> {
    // runc and crun wait at this FIFO until they are started; it saves us a process for each container.
    if (existsSync(join(deps.stateRoot, id, "exec.fifo"))) return true;
    if (existsSync(join(deps.stateRoot, id, "state.json"))) return false;
    const { stdout } = await run(command, ["state", id], AbortSignal.timeout(10_000));
    return /"status"\s*:\s*"(created|creating)"/.test(stdout);
  }
};

const assertRunning = (container: ContainerRef, what: string) => {
  const state = parseContainerState(container.state);
  if (state === undefined || !isAlive(fromRecord(state.process)))
    throw new RuntimeError(
      "failed-precondition",
      `Cannot ${what}: container "${container.id}" is not running`,
    );
  return state;
};

/** The cgroups of a process that are not ours too: those that the runtime made for it. */
const ownCgroups = (pid: number, layout: CgroupLayout): CgroupPaths => {
  const ours = readCgroups(process.pid, layout);
  return Object.fromEntries(
    Object.entries(readCgroups(pid, layout)).filter(
      ([controller, path]) => path !== ours[controller] && path !== layout.mounts[controller]?.mountpoint,
    ),
  );
};

/** Waits for the monitor to end, as it does when its container is gone, and ends it if it does not. */
const endMonitor = async (stateDir: string, signal: AbortSignal): Promise<void> => {
  const text = await readFile(monitorFiles(stateDir).monitorPid, "utf8").catch((error: unknown) => {
    throwExhausted(error);
    return "";
  });
  const monitor = identify(Number(text));
  // The number may be another process's by now: only one that runs in this directory is meant.
  if (monitor === undefined) return;
  const directory = await readlink(`/proc/${monitor.pid}/cwd`).catch(() => undefined);
  if (directory !== stateDir) return;
  for (let waited = 0; isAlive(monitor); waited++) {
    signal.throwIfAborted();
    if (waited === 400) process.kill(monitor.pid, "SIGKILL");
    await sleep(5);
  }
};

/** The directory is the caller's; what conmon, the runtime and we wrote into it goes. */
const removeFiles = async (stateDir: string): Promise<void> => {
  const files = Object.values(monitorFiles(stateDir));
  for (const name of ["config.json", "runtime.log", "winsz", "paused", ...Object.values(restoreFiles)])
    files.push(join(stateDir, name));
  await Promise.all(files.map((file) => rm(file, { force: true })));
};
