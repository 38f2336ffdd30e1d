import { existsSync, rmSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Any } from "@bufbuild/protobuf/wkt";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { CallOptions } from "@bulkhead/lib/ttrpc/client.ts";
import type { Logger } from "pino";
import type { Linux } from "../../linux/linux.ts";
import { isAlive, readProcess } from "../../linux/process.ts";
import type { Network } from "../../network/network.ts";
import type { Spec } from "../../spec/oci.ts";
import { removeCgroup, specCgroup } from "../../stats/cgroup-removal.ts";
import { type CgroupLayout, readLayout } from "../../stats/layout.ts";
import type { ContainerLaunch, ContainerRef, HandlerEvents, SandboxRef } from "../handler.ts";
import {
  bundleOf,
  createOptions,
  type RootfsMount,
  rooted,
  rootfsMounts,
  unmountAll,
  writeBundle,
} from "./bundle.ts";
import type { LaunchContext } from "./command.ts";
import { connectShim } from "./connection.ts";
import { freeDrive } from "./drives.ts";
import { EarlyOutputs } from "./early-outputs.ts";
import { files, readState } from "./files.ts";
import type { ShimHost } from "./host.ts";
import { deleteLeftovers, type KnownForm } from "./launch.ts";
import { LogFile } from "./log-file.ts";
import { ContainerOutput } from "./output.ts";
import { type LiveContainer, ShimPod } from "./pod.ts";
import { namedProcess, processesIn } from "./processes.ts";
import { readShimLog, type ShimLog } from "./shim-log.ts";
import { ContainerState, type ProcessState, ShimState, stateOf } from "./state.ts";
import { stdioPaths } from "./stdio.ts";

export type ShimHandlerDeps = {
  host: ShimHost;
  linux: Pick<Linux, "mkfifo" | "tee" | "splice" | "kill" | "umount" | "addresses">;
  network: Pick<Network, "dial">;
  events: HandlerEvents;
  log: Logger;
  /** True where pods' cgroups are made by systemd: runc's shim must be told. */
  systemdCgroup?: boolean;
  /** Absolute path of the static pause program: it keeps output while the daemon is away. */
  pauseProgram: string;
  /** Absolute path of bulkhead-exec-reaper, by which gVisor's pods are restored. */
  restoreProgram: string;
};

/** Unix nanoseconds. */
export const now = (): bigint => BigInt(Date.now()) * 1_000_000n;
export const { SIGKILL } = constants.signals;
/** How long a shim may take to end after Shutdown. */
const shutdownMs = 3_000;
const connectMs = 5_000;
/** How long a shim that is to be ended may take to answer before it is ended unasked. */
const patienceMs = 20_000;
/** The same of one that has been silent since the daemon's start. */
const endMs = 10_000;
/** How long until a Delete that came too early is tried again. */
const deleteAgainMs = 250;

/** `signal`, or a deadline of our own. */
export const within = (signal: AbortSignal, ms: number): AbortSignal =>
  AbortSignal.any([signal, AbortSignal.timeout(ms)]);

/** The state in the record, or in the file where the record has none yet. */
export const shimStateOf = (pod: SandboxRef): ShimState | undefined =>
  stateOf(ShimState, pod.state, readState(pod.stateDir, files.shim));
export const containerStateOf = (container: ContainerRef): ContainerState =>
  stateOf(ContainerState, container.state, readState(container.stateDir, files.container)) ?? {};

const shimOf = (ref: SandboxRef): ProcessState | undefined => shimStateOf(ref)?.shim;

/** True when the pod's shim is known, and no more. */
const isDead = (ref: SandboxRef): boolean => {
  const shim = shimOf(ref);
  return shim !== undefined && !isAlive({ pid: shim.pid, startTime: BigInt(shim.startTime) });
};

const silent = ({ id }: SandboxRef, what: string): RuntimeError =>
  new RuntimeError("deadline-exceeded", `Cannot reach pod ${id}: its shim ${what}`);

const unlessGone = async (reached: Promise<ShimPod>): Promise<ShimPod | undefined> => {
  try {
    return await reached;
  } catch (error) {
    if (hasCode(error, "unavailable") || hasCode(error, "not-found")) return undefined;
    throw error;
  }
};

/** The shims of one handler that this daemon is connected to, and what is done with each of them alike. */
export class Shims {
  readonly config: ShimHandlerConfig;
  readonly deps: ShimHandlerDeps;
  readonly log: Logger;
  readonly launch: LaunchContext;
  readonly knownForm: KnownForm = {};
  readonly createMs: number;
  readonly startMs: number;
  readonly stopMs: number;
  /** How long a question may take: Kata's shim asks the guest, and lets it wait while a container is made in it. */
  readonly answerMs: number;
  /** How long a connection may take until the shim has answered on it. */
  readonly connectMs: number;
  /** Outputs of containers that are not taken up yet after a restart of the daemon. */
  readonly early = new EarlyOutputs((container) => this.openOutput(container));
  readonly #pods = new Map<string, ShimPod>();
  /** Pods that are being taken up, or whose shim did not answer then: until it has, nothing else is asked of it. */
  readonly #silent = new Set<string>();
  readonly cgroupLayout: CgroupLayout = readLayout();

  constructor(config: ShimHandlerConfig, deps: ShimHandlerDeps) {
    this.config = config;
    this.deps = deps;
    this.log = deps.log;
    this.launch = {
      config,
      socketDir: deps.host.socketDir,
      // gVisor's shim panics, and takes the pod with it, when a sink that it was given does not answer, as while
      // the daemon restarts. It has no event that we need: out of memory is read from the sandbox's cgroup.
      eventsAddress: config.runsc ? "" : deps.host.eventsAddress,
      publisher: deps.host.publisher,
    };
    this.createMs = config.deadlines.create * 1000;
    this.startMs = config.deadlines.start * 1000;
    this.stopMs = config.deadlines.stop * 1000;
    this.answerMs = config.wall === "vm" ? Math.max(10_000, this.stopMs / 2) : 10_000;
    this.connectMs = config.wall === "vm" ? this.answerMs : connectMs;
  }

  /** Options of Create, with another configuration file than the handler's for a pod that has its own. */
  options(configPath = this.config.configPath): Any | undefined {
    const config = { ...this.config, ...(configPath !== undefined && { configPath }) };
    return createOptions(config, this.deps.systemdCgroup === true);
  }

  failed(error: unknown, message: string): void {
    this.log.warn({ err: error, handler: this.config.name }, message);
  }

  killProcess(process: ProcessState | undefined): void {
    if (process) this.deps.linux.kill(process.pid, BigInt(process.startTime), SIGKILL);
  }

  /** Passes on what a shim logs. A shim opens its log before it serves, and waits there for a reader. */
  readLog(id: string, bundle: string): ShimLog {
    return readShimLog(bundle, this.deps.linux, (line) =>
      this.log.debug({ pod: id, handler: this.config.name, line }, "shim says"),
    );
  }

  /** Takes a pod's shim into this daemon's hands. */
  async adopt(id: string, stateDir: string, state: ShimState, signal: AbortSignal): Promise<ShimPod> {
    const { events, host } = this.deps;
    const shim = await connectShim(state, id, signal);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => shim.connection.close());
    const log = this.readLog(id, bundleOf(stateDir, id));
    undo.move();
    const pod: ShimPod = new ShimPod(
      { id, stateDir, state, shim, log },
      {
        events: {
          containerExited: (container, exit) => events.containerExited(container, exit),
          sandboxExited: (sandbox, message) => {
            this.log.warn({ pod: sandbox, handler: this.config.name, message }, "sandbox is gone");
            events.sandboxExited(sandbox, message);
          },
        },
        tookOom: host.tookOom,
        onExit: host.onExit,
        killProcess: (process) => this.killProcess(process),
        endMachine: () => this.endMachine(id, stateDir),
        deleteLeftovers: (each, bundle) => this.deleteLeftovers(each, bundle),
        answerMs: this.answerMs,
        stopMs: this.stopMs,
        now,
        failed: (error, message) => this.failed(error, message),
      },
    );
    this.#pods.set(id, pod);
    return pod;
  }

  /** The pod's shim, connected to anew when it has to be; `unavailable` when it is gone. */
  async podOf(ref: SandboxRef, signal: AbortSignal, ms = this.connectMs): Promise<ShimPod> {
    if (this.#silent.has(ref.id)) throw silent(ref, "has not answered since the daemon's start");
    return await this.#reach(ref, signal, ms);
  }

  async #reach(ref: SandboxRef, signal: AbortSignal, ms: number): Promise<ShimPod> {
    const known = this.#pods.get(ref.id);
    if (known?.alive) return known;
    const state = shimStateOf(ref);
    if (!state) throw new RuntimeError("not-found", `Pod ${ref.id} has no shim`);
    await known?.gone;
    return await this.adopt(ref.id, ref.stateDir, state, within(signal, ms));
  }

  /** undefined when the shim is gone. */
  async podIfAlive(ref: SandboxRef, signal: AbortSignal): Promise<ShimPod | undefined> {
    return await unlessGone(this.podOf(ref, signal));
  }

  /**
   * The same for what is to be ended: a shim that takes the connection and does not answer is killed, for what nobody
   * can control must not run on.
   */
  async podToEnd(ref: SandboxRef, signal: AbortSignal): Promise<ShimPod | undefined> {
    if (this.#silent.has(ref.id)) return await this.podIfAlive(ref, signal);
    return await this.#toEnd(ref, signal);
  }

  async #toEnd(ref: SandboxRef, signal: AbortSignal): Promise<ShimPod | undefined> {
    try {
      return await unlessGone(this.#reach(ref, signal, this.#patience(ref)));
    } catch (error) {
      if (signal.aborted || !hasCode(error, "deadline-exceeded")) throw error;
      this.#endUnasked(ref, error);
      return undefined;
    }
  }

  #endUnasked(ref: SandboxRef, error: unknown): void {
    this.failed(error, `The shim of pod ${ref.id} does not answer and is killed`);
    this.killShim(ref, shimStateOf(ref));
  }

  /**
   * Takes a pod up after a restart of the daemon: `work` is given its shim, undefined when that is gone, and until when it
   * may take. While its process lives and does not answer this fails as `deadline-exceeded` or `unavailable`, all calls on
   * the pod do, and it can be tried again; with `end` it is killed instead, and `work` is done without it.
   */
  async takeUp<T>(
    ref: SandboxRef,
    end: boolean,
    signal: AbortSignal,
    work: (pod: ShimPod | undefined, deadline: AbortSignal) => Promise<T>,
  ): Promise<T> {
    // Nobody else connects to it meanwhile: there would be two of us.
    this.#silent.add(ref.id);
    // Not for long: another try costs nothing, or one has waited before.
    const ms = Math.min(this.connectMs, this.stopMs / 2);
    const deadline = end ? within(signal, Math.min(ms, endMs)) : signal;
    try {
      const pod = await (isDead(ref) ? this.#toEnd(ref, deadline) : this.#toKeep(ref, deadline, ms));
      if (end && !pod) this.killShim(ref, shimStateOf(ref));
      const done = await work(pod, deadline);
      this.#silent.delete(ref.id);
      return done;
    } catch (error) {
      // The next try begins anew, as another daemon would.
      if (this.#pods.get(ref.id)?.alive === false) await this.gone(ref.id);
      await this.forget(ref.id);
      const isSilent =
        deadline.aborted || hasCode(error, "deadline-exceeded") || hasCode(error, "unavailable");
      if (end || !isSilent) this.#silent.delete(ref.id);
      if (!isSilent) throw error;
      if (end) {
        this.#endUnasked(ref, error);
        return await work(undefined, signal);
      }
      throw error instanceof RuntimeError ? error : silent(ref, `took too long: ${messageOf(error)}`);
    }
  }

  async #toKeep(ref: SandboxRef, signal: AbortSignal, ms: number): Promise<ShimPod | undefined> {
    const pod = await unlessGone(this.#reach(ref, signal, ms));
    // The queue of a socket is full when its shim has hung for long.
    if (!pod && shimOf(ref) && !isDead(ref)) throw silent(ref, "lives and takes no connection");
    return pod;
  }

  /** How long a shim may take to answer before it counts as one that does not. */
  #patience(ref: SandboxRef): number {
    // What a dead shim forked may hold its socket: a connection to nobody.
    const patience = isDead(ref) ? connectMs / 5 : Math.max(patienceMs, this.connectMs);
    return Math.min(patience, this.stopMs / 2);
  }

  /** Ends a shim that cannot be talked to any more. Its death is then reported like any other. */
  async giveUp(pod: ShimPod, why: string): Promise<void> {
    this.log.warn({ pod: pod.id, handler: this.config.name, why }, "shim is given up and killed");
    pod.hung = true;
    this.killShim(pod, pod.state);
    await pod.disconnect();
  }

  /** Kills what is known of a shim, and what stands in its bundle. */
  killShim({ id, stateDir }: { id: string; stateDir: string }, state: ShimState | undefined): void {
    this.killProcess(state?.shim);
    for (const process of processesIn(bundleOf(stateDir, id))) this.killProcess(process);
  }

  /** A process that a shim names, if it can be the pod's. */
  named(pid: number, state: ShimState): ProcessState | undefined {
    const process = namedProcess(pid, state.since);
    if (!process && pid !== 0)
      this.log.warn({ pid, handler: this.config.name }, "shim names a process that cannot be the pod's");
    return process;
  }

  /** Settles when what a dead shim's containers came to was reported. */
  async gone(id: string): Promise<void> {
    await this.#pods.get(id)?.gone;
  }

  /** Closes what is still open of a pod: its shim's log and its containers' output, also where the shim has died. */
  async forget(id: string): Promise<void> {
    const pod = this.#pods.get(id);
    this.#pods.delete(id);
    await pod?.release();
  }

  /** Lets go of every pod. What runs goes on. */
  async release(): Promise<void> {
    for (const pod of this.#pods.values()) await pod.release();
    this.#pods.clear();
    this.early[Symbol.dispose]();
  }

  /** Frees what is left of a container whose shim is gone. A shim that cannot even do that does not hold us up. */
  async deleteLeftovers(
    id: string,
    bundle: string,
    signal?: AbortSignal,
  ): Promise<{ code: number } | undefined> {
    if (!existsSync(bundle)) return undefined;
    const deadline = AbortSignal.timeout(this.stopMs);
    try {
      // Some open it for this too, and wait for a reader.
      using _log = this.readLog(id, bundle);
      const either = signal ? AbortSignal.any([signal, deadline]) : deadline;
      return await deleteLeftovers(this.launch, id, bundle, either);
    } catch (error) {
      signal?.throwIfAborted();
      this.failed(error, `Cannot remove what is left of ${id}`);
      return undefined;
    }
  }

  openOutput(container: ContainerRef | ContainerLaunch): ContainerOutput {
    const { linux, host } = this.deps;
    return new ContainerOutput(
      stdioPaths(join(container.stateDir, files.io), container),
      { tty: container.tty, log: container.logPath === "" ? undefined : new LogFile(container.logPath) },
      {
        linux,
        readiness: host.readiness,
        copyPipe: host.copyPipe,
        logFailed: (error) => this.failed(error, `Cannot write the log of container ${container.id}`),
      },
    );
  }

  /** Signals a container; one that is gone has got it. */
  async kill(pod: ShimPod, id: string, signo: number, all: boolean, signal: AbortSignal): Promise<void> {
    const call = { signal, timeoutMs: Math.min(this.answerMs, this.stopMs / 3) };
    const kill = () => pod.task.kill({ id, signal: signo, all }, call);
    try {
      await kill();
    } catch (error) {
      // Also of a shim that died meanwhile: that is reported by itself.
      if (hasCode(error, "not-found") || (hasCode(error, "unavailable") && !pod.alive)) return;
      const isSilent = hasCode(error, "deadline-exceeded");
      if (signo !== SIGKILL || isSilent || !(await this.#resumed(pod, id, call))) throw error;
      await kill();
    }
  }

  /** Resumes a paused container: gVisor can signal none. False when it was not paused. */
  async #resumed(pod: ShimPod, id: string, call: CallOptions): Promise<boolean> {
    try {
      if ((await pod.task.state({ id }, call)).status !== Status.PAUSED) return false;
      await pod.task.resume({ id }, call);
      return true;
    } catch {
      return false;
    }
  }

  /** SIGKILL, until the container has ended. Called again and again; a shim that does not obey is given up. */
  async end(pod: ShimPod, live: LiveContainer, all: boolean, signal: AbortSignal): Promise<void> {
    let isNew = live.killedAt === undefined;
    live.killedAt ??= performance.now();
    try {
      // Its end is as good as the answer.
      await Promise.race([this.kill(pod, live.id, SIGKILL, all, signal), live.ended]);
    } catch (error) {
      if (signal.aborted) throw error;
      if (hasCode(error, "deadline-exceeded"))
        return await this.giveUp(pod, `it did not answer Kill of container ${live.id}`);
      this.failed(error, `Cannot kill container ${live.id}`);
      isNew = false;
    }
    if (isNew || (await pod.ask(live)) || performance.now() - live.killedAt < this.stopMs / 2) return;
    // One that the kernel itself cannot end, as it waits for a disk, is not the shim's fault.
    if (live.state.process && readProcess(live.state.process.pid)?.state === "D") return;
    await this.giveUp(pod, `container ${live.id} does not end by the Kill that it is sent`);
  }

  /**
   * Ends a container of gVisor that was never started. Its shim can neither kill it nor delete it (Delete waits
   * for the output of a process that is not there), so runsc does; the shim keeps an entry, and is killed in the
   * end instead of asked to go.
   */
  async abandon(pod: ShimPod, live: LiveContainer): Promise<void> {
    live.abandoned = true;
    await pod.cleanUp(live.id, live.stateDir);
    pod.stuck = true;
    // The shim's ends of the pipes stay open, and nothing was ever written.
    live.output.close();
    await pod.settle(live, 128 + SIGKILL);
  }

  async neverStarted(pod: ShimPod, id: string, signal: AbortSignal): Promise<boolean> {
    if (!this.config.runsc) return false;
    const { status } = await pod.task.state({ id }, { signal, timeoutMs: this.answerMs });
    return status === Status.CREATED;
  }

  /** Removes a container from its shim, killing it first when it still runs. */
  async deleteTask(
    pod: ShimPod,
    id: string,
    live: LiveContainer | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    if (live?.abandoned) return;
    const failed = (error: unknown, message: string) => {
      pod.hung ||= hasCode(error, "deadline-exceeded") && !signal.aborted;
      this.failed(error, message);
    };
    try {
      if (live && !live.exit && !pod.hung) {
        if (await this.neverStarted(pod, id, signal)) return await this.abandon(pod, live);
        await this.kill(pod, id, SIGKILL, true, signal).catch((error) =>
          failed(error, `Cannot kill container ${id}`),
        );
        if (!pod.hung)
          await Promise.race([
            live.ended,
            sleep(Math.min(this.stopMs, this.answerMs), undefined, { ref: false }),
          ]);
      }
      if (!pod.hung) {
        await (live ? this.#deleteOnce(pod, live, signal) : this.#delete(pod, id, signal));
        return;
      }
    } catch (error) {
      if (hasCode(error, "not-found") || hasCode(error, "unavailable")) return;
      failed(error, `Cannot delete container ${id} in its shim`);
    }
    await pod.cleanUp(id, live?.stateDir ?? pod.stateDir);
  }

  /**
   * Deletes a container in its shim as soon as it has ended, where a machine has few places for disks: kubelet makes
   * the next one of its name before it removes this one. What is to be known of it is written down by then.
   */
  async releaseEnded(pod: ShimPod, live: LiveContainer): Promise<void> {
    if (this.config.kata?.rootfs !== "block" || !live.exit || !pod.alive || pod.hung) return;
    try {
      await this.#deleteOnce(pod, live, within(pod.released, this.stopMs));
    } catch (error) {
      if (pod.alive && !hasCode(error, "not-found"))
        this.failed(error, `Cannot release container ${live.id} in its shim`);
    }
  }

  /** One asks, however many want it: a shim answers the second as if something had failed. */
  async #deleteOnce(pod: ShimPod, live: LiveContainer, signal: AbortSignal): Promise<void> {
    live.deleting ??= this.#delete(pod, live.id, signal).catch((error) => {
      delete live.deleting;
      throw error;
    });
    await live.deleting;
  }

  /** Kata's Go shim tells of an end before it has stopped the container in the guest, and refuses Delete until then. */
  async #delete(pod: ShimPod, id: string, signal: AbortSignal): Promise<void> {
    await using undo = new AsyncDisposableStack();
    // Also of one that the shim does not know: its making failed when it had its drive.
    if (this.config.kata?.rootfs === "block" && id !== pod.id)
      undo.defer(() =>
        freeDrive(pod.state.shim, { sandboxId: pod.id, id }, AbortSignal.timeout(this.stopMs)).catch(
          (error) => this.failed(error, `Cannot free the drive of container ${id}`),
        ),
      );
    for (const deadline = performance.now() + this.stopMs; ; )
      try {
        await pod.task.delete({ id }, { signal, timeoutMs: this.stopMs });
        return;
      } catch (error) {
        if (!/not ready or stopped/.test(messageOf(error)) || performance.now() > deadline) throw error;
        await sleep(deleteAgainMs, undefined, { signal });
      }
  }

  /**
   * A Create that was given up may still be carried out: a container that comes late is removed for as long as a
   * stop may take.
   */
  async removeLate(pod: ShimPod, id: string): Promise<void> {
    const call = { signal: pod.released, timeoutMs: this.stopMs };
    for (let look = 0; look < 10 && pod.alive; look++) {
      await sleep(this.stopMs / 10, undefined, { signal: pod.released, ref: false }).catch(() => {});
      try {
        await pod.task.state({ id }, call);
      } catch {
        continue;
      }
      await this.kill(pod, id, SIGKILL, true, pod.released).catch(() => {});
      await pod.task.delete({ id }, call).catch((error) => this.failed(error, `Cannot delete late ${id}`));
    }
  }

  /** The shim's end, asked for and then made. */
  async shutdown(pod: ShimPod): Promise<void> {
    pod.quiet();
    if (!pod.stuck && !pod.hung) {
      // One that is killed while it takes a virtual machine down leaves the machine.
      const timeoutMs = this.config.wall === "vm" ? this.stopMs : shutdownMs;
      const ended = pod.state.sandboxApi
        ? pod.sandbox.shutdownSandbox({ sandboxId: pod.id }, { timeoutMs })
        : pod.task.shutdown({ id: pod.id, now: true }, { timeoutMs });
      await ended.catch(() => {});
      await Promise.race([pod.gone, sleep(timeoutMs, undefined, { ref: false })]);
    }
    if (pod.alive) this.killShim(pod, pod.state);
    await this.forget(pod.id);
    await pod.release();
  }

  /** A shim that was killed half-way leaves a cgroup that nobody else knows of. */
  async removeCgroup(id: string, bundle: string): Promise<void> {
    await removeCgroup(await specCgroup(join(bundle, "config.json"), id, this.cgroupLayout), this.deps.linux);
  }

  /** Writes the bundle of a container; returns its path, and what the shim is to mount as its root. */
  writeBundle(
    launch: Pick<ContainerLaunch, "id" | "stateDir" | "rootfs" | "disk" | "spec">,
    spec: Spec,
  ): { bundle: string; rootfs: RootfsMount[] } {
    const rootfs = this.config.wall === "vm" ? rootfsMounts(launch) : [];
    return {
      bundle: writeBundle(launch.stateDir, launch.id, rootfs.length > 0 ? rooted(spec) : spec),
      rootfs,
    };
  }

  /**
   * Ends what a dead shim left running: Kata's machine outlives it, and `SHIM delete` would ask a guest that nobody
   * watches, or leave it. Of other walls `delete` is what ends them.
   */
  async endMachine(id: string, stateDir: string): Promise<void> {
    if (this.config.wall !== "vm") return;
    await this.removeCgroup(id, bundleOf(stateDir, id)).catch((error) =>
      this.failed(error, `Cannot end the machine of pod ${id}`),
    );
  }

  /**
   * Removes a bundle. A shim that was killed leaves its root mounted there: unmounted first, so that what is removed
   * is not what the mount shows.
   */
  async removeBundle(bundle: string): Promise<void> {
    if (this.config.wall === "vm") await unmountAll(join(bundle, "rootfs"), this.deps.linux);
    rmSync(bundle, { recursive: true, force: true });
  }
}
