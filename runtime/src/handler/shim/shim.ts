import { accessSync, constants, existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import type { Linux } from "../../linux/linux.ts";
import { identify } from "../../monitor/process.ts";
import type { Network } from "../../network/network.ts";
import type { Resources } from "../../spec/oci.ts";
import { removeCgroup, specCgroup } from "../../stats/cgroup-removal.ts";
import { readLayout } from "../../stats/layout.ts";
import type {
  AttachSession,
  ContainerLaunch,
  ContainerRef,
  Exit,
  Handler,
  HandlerEvents,
  HandlerState,
  Recovered,
  SandboxLaunch,
  SandboxRef,
} from "../handler.ts";
import { bundleOf, createOptions, groupedSpec, resourcesAny, writeBundle } from "./bundle.ts";
import { connectShim } from "./connection.ts";
import { execInTask, stdinWriter } from "./exec.ts";
import { files, readExit, readMemory, readState, writeState } from "./files.ts";
import type { ShimHost } from "./host.ts";
import { deleteLeftovers, type LaunchContext, launchShim } from "./launch.ts";
import { LogFile } from "./log-file.ts";
import { holdMemoryLimit } from "./memory-limit.ts";
import { ContainerOutput } from "./output.ts";
import { type LiveContainer, ShimPod } from "./pod.ts";
import { portForwardRunsc } from "./port-forward.ts";
import { memoryUsage } from "./runsc-control.ts";
import { readShimLog } from "./shim-log.ts";
import { ContainerState, type ProcessState, ShimState, stateOf } from "./state.ts";
import { cgroupsOf, cgroupUsage, memoryOf, oomKills, usageOf } from "./stats.ts";
import { holdInput, holdOpen, makeStdio, removeStdio, startKeeper, stdioPaths } from "./stdio.ts";

export type ShimHandlerDeps = {
  host: ShimHost;
  linux: Pick<Linux, "mkfifo" | "tee" | "kill">;
  network: Pick<Network, "dial">;
  events: HandlerEvents;
  log: Logger;
  /** Absolute path of the static pause program: it keeps output while the daemon is away. */
  pauseProgram: string;
};

const now = (): bigint => BigInt(Date.now()) * 1_000_000n;
const SIGKILL = 9;
/** How long a shim may take to end after Shutdown. */
const shutdownMs = 3_000;
const connectMs = 5_000;

/**
 * Any containerd shim v2 (gVisor, Kata, runc) as a handler: one shim per pod, launched once with the sandbox, and
 * every container created through its address. So no shim needs to be told to group, and gVisor's needs no file
 * below /etc or /run/containerd. Disposing lets go of everything and leaves all of it running.
 */
export async function createShimHandler(
  config: ShimHandlerConfig,
  deps: ShimHandlerDeps,
): Promise<Handler & AsyncDisposable> {
  for (const program of [config.binary, deps.pauseProgram, ...(config.runsc ? [config.runsc.binary] : [])]) {
    try {
      accessSync(program, constants.X_OK);
    } catch (error) {
      throw new RuntimeError("failed-precondition", `Cannot run ${program}: ${messageOf(error)}`, {
        cause: error,
      });
    }
  }
  const { host, linux, log } = deps;
  const context: LaunchContext = {
    config,
    socketDir: host.socketDir,
    // gVisor's shim panics, and takes the pod with it, when a sink that it was given does not answer, as while
    // the daemon restarts. It has no event that we need: out of memory is read from the sandbox's cgroup.
    eventsAddress: config.runsc ? "" : host.eventsAddress,
  };
  const options = createOptions(config);
  const layout = readLayout();
  const pods = new Map<string, ShimPod>();
  const createMs = config.deadlines.create * 1000;
  const startMs = config.deadlines.start * 1000;
  const stopMs = config.deadlines.stop * 1000;
  const within = (signal: AbortSignal, ms: number) => AbortSignal.any([signal, AbortSignal.timeout(ms)]);
  const failed = (error: unknown, message: string) => log.warn({ err: error, handler: config.name }, message);

  const shimStateOf = (pod: SandboxRef): ShimState | undefined =>
    stateOf(ShimState, pod.state, readState(pod.stateDir, files.shim));
  const containerStateOf = (container: ContainerRef): ContainerState =>
    stateOf(ContainerState, container.state, readState(container.stateDir, files.container)) ?? {};

  const processState = (pid: number): ProcessState | undefined => {
    const id = identify(pid);
    return id && { pid, startTime: String(id.startTime) };
  };
  const killProcess = (process: ProcessState | undefined) => {
    if (process) linux.kill(process.pid, BigInt(process.startTime), SIGKILL);
  };

  const logReader = (id: string, bundle: string): Disposable =>
    readShimLog(bundle, linux, (line) => log.debug({ pod: id, handler: config.name, line }, "shim says"));

  /** Takes a pod's shim into this daemon's hands. */
  const adopt = async (
    id: string,
    stateDir: string,
    state: ShimState,
    signal: AbortSignal,
  ): Promise<ShimPod> => {
    const shim = await connectShim(state.address, state.version, id, signal);
    const resources = logReader(id, bundleOf(stateDir, id));
    const pod: ShimPod = new ShimPod(
      { id, stateDir, state, shim, resources },
      {
        events: {
          containerExited: (container, exit) => deps.events.containerExited(container, exit),
          sandboxExited: (sandbox, message) => {
            log.warn({ pod: sandbox, handler: config.name, message }, "sandbox is gone");
            deps.events.sandboxExited(sandbox, message);
          },
        },
        tookOom: host.tookOom,
        deleteLeftovers: (each, bundle) =>
          deleteLeftovers(context, each, bundle, AbortSignal.timeout(stopMs)),
        now,
        failed,
      },
    );
    pods.set(id, pod);
    return pod;
  };

  const podOf = async (ref: SandboxRef, signal: AbortSignal): Promise<ShimPod> => {
    const known = pods.get(ref.id);
    if (known?.alive) return known;
    const state = shimStateOf(ref);
    if (!state) throw new RuntimeError("not-found", `Pod ${ref.id} has no shim`);
    await known?.gone;
    return await adopt(ref.id, ref.stateDir, state, within(signal, connectMs));
  };

  /** undefined when the shim is gone. */
  const podIfAlive = async (ref: SandboxRef, signal: AbortSignal): Promise<ShimPod | undefined> => {
    try {
      return await podOf(ref, signal);
    } catch (error) {
      if (hasCode(error, "unavailable") || hasCode(error, "not-found")) return undefined;
      throw error;
    }
  };

  const openOutput = (container: ContainerRef | ContainerLaunch): ContainerOutput => {
    const output = new ContainerOutput(
      stdioPaths(join(container.stateDir, files.io), container),
      { tty: container.tty, log: container.logPath === "" ? undefined : new LogFile(container.logPath) },
      {
        linux,
        readiness: host.readiness,
        copyPipe: host.copyPipe,
        logFailed: (error) => failed(error, `Cannot write the log of container ${container.id}`),
      },
    );
    return output;
  };

  const liveOf = (pod: ShimPod, ref: ContainerRef): LiveContainer => {
    const live = pod.containers.get(ref.id);
    if (!live) throw new RuntimeError("not-found", `Container ${ref.id} is not there`);
    return live;
  };

  /** Takes a container up that has not ended: its end is reported, and under gVisor its memory limit is held. */
  const follow = (pod: ShimPod, container: Omit<LiveContainer, "ended">) => {
    const live = pod.add(container);
    if (!config.runsc) return;
    const { root } = config.runsc;
    const { id, stateDir } = container;
    void holdMemoryLimit(
      {
        limit: () => readMemory(stateDir).limit,
        sandboxUsage: () => pod.state.cgroups && memoryOf(pod.state.cgroups),
        usage: (signal) => memoryUsage(root, pod.id, id, signal),
        kill: async () => {
          // First: the exit must find it.
          writeState(stateDir, files.memory, { ...readMemory(stateDir), exceeded: true });
          log.info(
            { container: id, pod: pod.id, handler: config.name },
            "container is over its memory limit",
          );
          await kill(pod, id, SIGKILL, true, AbortSignal.timeout(stopMs));
        },
        ended: live.ended,
      },
      pod.released,
    ).catch((error) => failed(error, `Cannot hold container ${id} to its memory limit`));
  };

  const setMemoryLimit = (stateDir: string, resources: Resources | undefined) => {
    const limit = resources?.memory?.limit;
    if (config.runsc && limit !== undefined)
      writeState(stateDir, files.memory, { ...readMemory(stateDir), limit: Math.max(0, limit) });
  };

  const kill = async (pod: ShimPod, id: string, signo: number, all: boolean, signal: AbortSignal) => {
    try {
      await pod.task.kill({ id, signal: signo, all }, { signal, timeoutMs: 10_000 });
    } catch (error) {
      if (!hasCode(error, "not-found")) throw error;
    }
  };

  /**
   * Ends a container of gVisor that was never started. Its shim can neither kill it nor delete it (Delete waits
   * for the output of a process that is not there), so runsc does; the shim keeps an entry, and is killed in the
   * end instead of asked to go.
   */
  const abandon = async (pod: ShimPod, live: LiveContainer) => {
    await pod.cleanUp(live.id, live.stateDir);
    pod.stuck = true;
    // The shim's ends of the pipes stay open, and nothing was ever written.
    live.output.close();
    await pod.settle(live, 128 + SIGKILL);
  };
  const neverStarted = async (pod: ShimPod, id: string, signal: AbortSignal): Promise<boolean> => {
    if (!config.runsc) return false;
    const { status } = await pod.task.state({ id }, { signal, timeoutMs: 10_000 });
    return status === Status.CREATED;
  };

  /** Removes a container from its shim, killing it first when it still runs. */
  const deleteTask = async (
    pod: ShimPod,
    id: string,
    live: LiveContainer | undefined,
    signal: AbortSignal,
  ) => {
    try {
      if (live && !live.exit) {
        if (await neverStarted(pod, id, signal)) return await abandon(pod, live);
        await kill(pod, id, SIGKILL, true, signal).catch((error) =>
          failed(error, `Cannot kill container ${id}`),
        );
        await Promise.race([live.ended, sleep(Math.min(stopMs, 10_000), undefined, { ref: false })]);
      }
      await pod.task.delete({ id }, { signal, timeoutMs: stopMs });
    } catch (error) {
      if (hasCode(error, "not-found") || hasCode(error, "unavailable")) return;
      failed(error, `Cannot delete container ${id} in its shim`);
      await pod.cleanUp(id, live?.stateDir ?? pod.stateDir);
    }
  };

  /** The shim's end, asked for and then made. */
  const endShim = async (pod: ShimPod) => {
    pod.quiet();
    if (!pod.stuck) {
      await pod.task.shutdown({ id: pod.id, now: true }, { timeoutMs: shutdownMs }).catch(() => {});
      await Promise.race([pod.gone, sleep(shutdownMs, undefined, { ref: false })]);
    }
    if (pod.alive) killProcess(pod.state.shim);
    pods.delete(pod.id);
    await pod.release();
  };

  const handler: Handler & AsyncDisposable = {
    name: config.name,
    kind: "shim",
    revision: config.revision ?? "",
    features: () => ({
      // A read-only mount is read-only down to its leaves in gVisor anyway.
      recursiveReadOnlyMounts: config.runsc !== undefined,
      userNamespaces: false,
      userNamespacesHostNetwork: false,
    }),

    async runSandbox(launch: SandboxLaunch, signal): Promise<HandlerState> {
      // runsc would start it, with no interface at all, while the API server says that it has the node's address.
      if (config.runsc && config.runsc.network !== "host" && launch.namespaces.net === undefined)
        throw new RuntimeError(
          "failed-precondition",
          `Cannot run the pod on the node's network: handler "${config.name}" is gVisor with a network of its own; drop hostNetwork or use a profile with handler.gvisor.network: host`,
        );
      const deadline = within(signal, createMs);
      await using undo = new AsyncDisposableStack();
      const bundle = writeBundle(launch.stateDir, launch.id, groupedSpec(launch.spec, "sandbox", launch.id));
      const ref: SandboxRef = { id: launch.id, stateDir: launch.stateDir, state: {} };
      undo.defer(async () => {
        const launched = launchedShim(bundle);
        await handler.removeSandbox(ref, AbortSignal.timeout(stopMs));
        // One that did not come so far that it could be asked to go.
        killProcess(launched);
      });
      // A shim opens its log before it serves, and waits there for a reader, also after `start` has ended.
      using _log = logReader(launch.id, bundle);
      const reply = await launchShim(context, launch.id, bundle, deadline);
      const holder = launch.rootfs !== "";
      const state: ShimState = {
        address: reply.address,
        version: reply.version,
        holder,
        netns: launch.namespaces.net ?? "",
      };
      writeState(launch.stateDir, files.shim, state);
      const probe = await connectShim(reply.address, reply.version, launch.id, deadline);
      try {
        state.version = probe.version;
        if (holder) {
          const { pid } = await probe.task.create(
            { id: launch.id, bundle, rootfs: rootfsMounts(launch.rootfs), ...(options ? { options } : {}) },
            { signal: deadline, timeoutMs: createMs },
          );
          const process = processState(pid);
          if (process) state.process = process;
          const cgroups = cgroupsOf(pid);
          if (cgroups) state.cgroups = cgroups;
          await probe.task.start({ id: launch.id }, { signal: deadline, timeoutMs: startMs });
        }
        const { shimPid } = holder
          ? await probe.task.connect({ id: launch.id }, { signal: deadline, timeoutMs: 10_000 })
          : probe;
        const shim = processState(shimPid);
        if (shim) state.shim = shim;
      } finally {
        probe.connection.close();
      }
      writeState(launch.stateDir, files.shim, state);
      const pod = await adopt(launch.id, launch.stateDir, state, deadline);
      void pod.watchHolder();
      undo.move();
      return state;
    },

    async stopSandbox(ref, signal) {
      const pod = await podIfAlive(ref, signal);
      if (pod) {
        pod.quiet();
        const containers = [...pod.containers.values()];
        await Promise.all(containers.map((live) => deleteTask(pod, live.id, live, signal)));
        if (pod.state.holder) {
          await kill(pod, pod.id, SIGKILL, true, signal).catch((error) =>
            failed(error, `Cannot kill pod ${pod.id}`),
          );
          await pod.task.wait({ id: pod.id }, { signal, timeoutMs: stopMs }).catch(() => {});
          await deleteTask(pod, pod.id, undefined, signal);
        }
        await Promise.all(containers.map((live) => pod.settle(live, 128 + SIGKILL)));
        await endShim(pod);
      } else {
        await pods.get(ref.id)?.gone;
        killProcess(shimStateOf(ref)?.shim);
        await deleteLeftovers(context, ref.id, bundleOf(ref.stateDir, ref.id), within(signal, stopMs));
      }
      await removeCgroupOf(ref.id, bundleOf(ref.stateDir, ref.id));
      // Without it a second stop finds nothing to do.
      rmSync(bundleOf(ref.stateDir, ref.id), { recursive: true, force: true });
    },

    async removeSandbox(ref, signal) {
      await handler.stopSandbox(ref, signal);
      const state = shimStateOf(ref);
      // A shim that was killed leaves its socket.
      if (state) rmSync(state.address.replace(/^unix:\/\//, ""), { force: true });
      rmSync(join(ref.stateDir, files.shim), { force: true });
      pods.delete(ref.id);
    },

    async create(launch, signal): Promise<HandlerState> {
      const pod = await podOf(launch.sandbox, signal);
      const { id, stateDir } = launch;
      const bundle = writeBundle(stateDir, id, groupedSpec(launch.spec, "container", launch.sandbox.id));
      const io = join(stateDir, files.io);
      const stdio = stdioPaths(io, launch);
      const state: ContainerState = {};
      await using undo = new AsyncDisposableStack();
      undo.defer(() => {
        killProcess(state.keeper);
        removeStdio(io);
        rmSync(bundle, { recursive: true, force: true });
      });
      makeStdio(io, stdio, linux);
      const held = undo.use(holdOpen(stdio));
      const keeper = startKeeper(deps.pauseProgram, stdio);
      state.keeper = { pid: keeper.pid, startTime: String(keeper.startTime) };
      writeState(stateDir, files.container, state);
      const output = openOutput(launch);
      undo.defer(() => output.close());
      undo.defer(() => pod.cleanUp(id, stateDir));
      const { pid } = await pod.task.create(
        {
          id,
          bundle,
          rootfs: rootfsMounts(launch.rootfs),
          terminal: launch.tty,
          ...stdio,
          ...(options ? { options } : {}),
        },
        { signal, timeoutMs: createMs },
      );
      const process = processState(pid);
      if (process) state.process = process;
      const cgroups = cgroupsOf(pid);
      if (cgroups) {
        state.cgroups = cgroups;
        const kills = oomKills(cgroups);
        if (kills !== undefined) state.oomKills = kills;
      }
      writeState(stateDir, files.container, state);
      setMemoryLimit(stateDir, launch.spec.linux?.resources);
      const input = holdInput(stdio);
      held[Symbol.dispose]();
      undo.move();
      follow(pod, { id, stateDir, state, output, input });
      return state;
    },

    async start(ref, signal) {
      const pod = await podOf(ref.sandbox, signal);
      const live = pod.containers.get(ref.id);
      const started = pod.task.start({ id: ref.id }, { signal, timeoutMs: startMs });
      if (live)
        live.starting = started.then(
          () => true,
          () => false,
        );
      await started;
      if (live) live.started = true;
    },

    async kill(ref, signo, all, signal) {
      const pod = await podIfAlive(ref.sandbox, signal);
      const live = pod?.containers.get(ref.id);
      if (!pod || live?.exit) return;
      if (live && signo === SIGKILL && !live.started && (await neverStarted(pod, ref.id, signal)))
        return await abandon(pod, live);
      await kill(pod, ref.id, signo, all, signal);
    },

    async remove(ref, signal) {
      const pod = await podIfAlive(ref.sandbox, signal);
      const bundle = bundleOf(ref.stateDir, ref.id);
      const live = pod?.containers.get(ref.id);
      if (pod) {
        await deleteTask(pod, ref.id, live ?? undefined, signal);
        pod.containers.delete(ref.id);
        live?.output.close();
        live?.input?.[Symbol.dispose]();
      } else await deleteLeftovers(context, ref.id, bundle, within(signal, stopMs));
      await removeCgroupOf(ref.id, bundle);
      killProcess(containerStateOf(ref).keeper);
      removeStdio(join(ref.stateDir, files.io));
      rmSync(bundle, { recursive: true, force: true });
      for (const file of [files.container, files.exit, files.memory])
        rmSync(join(ref.stateDir, file), { force: true });
    },

    async update(ref, resources, signal) {
      if (!resources) return;
      const pod = await podOf(ref.sandbox, signal);
      await pod.task.update(
        { id: ref.id, resources: resourcesAny(resources) },
        { signal, timeoutMs: 10_000 },
      );
      setMemoryLimit(ref.stateDir, resources);
    },

    async stats(ref, signal) {
      const pod = await podIfAlive(ref.sandbox, signal);
      if (!pod || pod.containers.get(ref.id)?.exit) return undefined;
      try {
        const { stats } = await pod.task.stats({ id: ref.id }, { signal, timeoutMs: 5_000 });
        const usage = stats && usageOf(stats, now());
        if (usage && (usage.cpuNanos > 0n || usage.memoryUsage > 0n)) return usage;
      } catch (error) {
        if (!hasCode(error, "not-found") && !hasCode(error, "unknown")) throw error;
      }
      // gVisor cannot always tell its containers apart: then the sandbox's figures, which are the pod's.
      return pod.state.cgroups && cgroupUsage(pod.state.cgroups, now());
    },

    async sandboxStats(ref) {
      const cgroups = shimStateOf(ref)?.cgroups;
      return cgroups && cgroupUsage(cgroups, now());
    },

    async reopenLog(ref, signal) {
      const pod = await podOf(ref.sandbox, signal);
      liveOf(pod, ref).output.reopenLog();
    },

    async exec(ref, request, signal) {
      const pod = await podOf(ref.sandbox, signal);
      return await execInTask(
        { task: pod.task, containerId: ref.id, stateDir: ref.stateDir, linux, startMs },
        request,
        signal,
      );
    },

    async attach(ref, signal): Promise<AttachSession> {
      const pod = await podOf(ref.sandbox, signal);
      const live = liveOf(pod, ref);
      if (live.exit) throw new RuntimeError("failed-precondition", `Container ${ref.id} has exited`);
      const stdin = ref.stdin ? await attachStdin(pod, ref, signal) : undefined;
      const { detach, ...outputs } = live.output.attach();
      const close = () => {
        detach();
        stdin?.destroy();
      };
      signal.addEventListener("abort", close, { once: true });
      return {
        ...outputs,
        ...(stdin ? { stdin } : {}),
        resize: async (width, height) => {
          await pod.task.resizePty({ id: ref.id, width, height }, { timeoutMs: 10_000 });
        },
        close: () => {
          signal.removeEventListener("abort", close);
          close();
        },
      };
    },

    async portForward(ref, port, signal) {
      if (config.runsc) return await portForwardRunsc(config.runsc, host.socketDir, ref.id, port, signal);
      return await deps.network.dial(shimStateOf(ref)?.netns ?? "", port, signal);
    },

    async recover(ref, containers, signal): Promise<Recovered> {
      const pod = await podIfAlive(ref, signal);
      const found: Recovered["containers"] = new Map();
      for (const container of containers) {
        const exit = readExit(container.stateDir) ?? (await exitOf(pod, container, signal));
        if (exit === "created" || exit === "running") found.set(container.id, { state: exit });
        else if (exit === "unknown") found.set(container.id, { state: "unknown" });
        else found.set(container.id, { state: "exited", exit });
        if (existsSync(join(container.stateDir, files.io))) await takeUp(pod, container, exit);
      }
      if (!pod) {
        await deleteLeftovers(context, ref.id, bundleOf(ref.stateDir, ref.id), within(signal, stopMs));
        return { sandboxAlive: false, containers: found };
      }
      const sandboxAlive = await holderRuns(pod, signal);
      if (sandboxAlive) void pod.watchHolder();
      return { sandboxAlive, containers: found };
    },

    async [Symbol.asyncDispose]() {
      for (const pod of pods.values()) await pod.release();
      pods.clear();
    },
  };

  /** A shim that was killed half-way leaves a cgroup that nobody else knows of. */
  const removeCgroupOf = async (id: string, bundle: string): Promise<void> =>
    removeCgroup(await specCgroup(join(bundle, "config.json"), id, layout), linux);

  /** Kata shares a directory that it finds mounted in the bundle; the others go where root.path says. */
  const rootfsMounts = (rootfs: string) =>
    config.wall === "vm" ? [{ type: "bind", source: rootfs, options: ["rbind", "rw"] }] : [];

  /** The shim of a launch that did not come to its end, by the file that runc's and gVisor's write. */
  const launchedShim = (bundle: string): ProcessState | undefined => {
    try {
      return processState(Number(readFileSync(join(bundle, "shim.pid"), "utf8")));
    } catch {
      return undefined;
    }
  };

  /** What the shim says of a container that this daemon did not see. */
  const exitOf = async (
    pod: ShimPod | undefined,
    ref: ContainerRef,
    signal: AbortSignal,
  ): Promise<Exit | "created" | "running" | "unknown"> => {
    const state = containerStateOf(ref);
    const oomKilled = () =>
      readMemory(ref.stateDir).exceeded ||
      (state.cgroups !== undefined &&
        state.oomKills !== undefined &&
        (oomKills(state.cgroups) ?? state.oomKills) > state.oomKills);
    if (!pod) {
      if (!existsSync(bundleOf(ref.stateDir, ref.id))) return "unknown";
      const end = await deleteLeftovers(
        context,
        ref.id,
        bundleOf(ref.stateDir, ref.id),
        within(signal, stopMs),
      );
      return { code: end ? end.code & 0xff : 255, finishedAt: now(), oomKilled: oomKilled() };
    }
    try {
      const { status, exitStatus, exitedAt } = await pod.task.state(
        { id: ref.id },
        { signal, timeoutMs: 10_000 },
      );
      if (status === Status.CREATED) return "created";
      if (status !== Status.STOPPED) return "running";
      const finishedAt = exitedAt ? exitedAt.seconds * 1_000_000_000n + BigInt(exitedAt.nanos) : now();
      return { code: exitStatus & 0xff, finishedAt, oomKilled: exitStatus !== 0 && oomKilled() };
    } catch (error) {
      if (hasCode(error, "not-found")) return "unknown";
      throw error;
    }
  };

  /** Goes on with a container's output, and with waiting for its end when it has not come. */
  const takeUp = async (
    pod: ShimPod | undefined,
    ref: ContainerRef,
    exit: Exit | "created" | "running" | "unknown",
  ): Promise<void> => {
    const output = openOutput(ref);
    output.start();
    const ended = typeof exit === "object";
    if (pod && !ended && exit !== "unknown") {
      follow(pod, { id: ref.id, stateDir: ref.stateDir, state: containerStateOf(ref), output });
      return;
    }
    await output.drained(AbortSignal.timeout(5_000));
    if (!pod) return output.close();
    if (ended) {
      writeState(ref.stateDir, files.exit, { ...exit, finishedAt: String(exit.finishedAt) });
      pod.addEnded({ id: ref.id, stateDir: ref.stateDir, state: containerStateOf(ref), output, exit });
    } else output.close();
  };

  const holderRuns = async (pod: ShimPod, signal: AbortSignal): Promise<boolean> => {
    if (!pod.state.holder) return true;
    try {
      const { status } = await pod.task.state({ id: pod.id }, { signal, timeoutMs: 10_000 });
      return status === Status.RUNNING || status === Status.PAUSED;
    } catch (error) {
      if (hasCode(error, "not-found")) return false;
      throw error;
    }
  };

  const attachStdin = (pod: ShimPod, ref: ContainerRef, signal: AbortSignal): Promise<Writable> => {
    const path = stdioPaths(join(ref.stateDir, files.io), ref).stdin;
    const halfClose = async () => {
      // A terminal's input does not end with a client: the shell behind it would.
      if (!ref.stdinOnce || ref.tty) return;
      pod.containers.get(ref.id)?.input?.[Symbol.dispose]();
      await pod.task.closeIO({ id: ref.id, stdin: true }, { timeoutMs: 10_000 });
    };
    return stdinWriter(path, halfClose, within(signal, connectMs));
  };

  return handler;
}
