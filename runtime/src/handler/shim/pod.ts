import { setTimeout as sleep } from "node:timers/promises";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { isAlive } from "../../linux/process.ts";
import type { Exit, HandlerEvents } from "../handler.ts";
import { bundleOf } from "./bundle.ts";
import type { ShimConnection, TaskClient } from "./connection.ts";
import { readMemory, writeExit } from "./files.ts";
import type { ContainerOutput } from "./output.ts";
import { type SandboxClient, sandboxClient } from "./sandbox-api.ts";
import type { ShimLog } from "./shim-log.ts";
import type { ContainerState, ProcessState, ShimState } from "./state.ts";
import { oomKills } from "./stats.ts";

/** How long the output of a finished container may take into the log: a child may hold the pipe open. */
const drainMs = 5_000;
/** How long containers may take to be reported after their sandbox is gone. */
const followMs = 10_000;

export type LiveContainer = {
  id: string;
  stateDir: string;
  state: ContainerState;
  output: ContainerOutput;
  /** Our own writer of its input, from create to its end or half-close. */
  input?: Disposable;
  /** All of its pipes held open until it has started: a shim may open its own ends as late as that. */
  held?: Disposable;
  /** True when this daemon started it: no need to ask. */
  started?: boolean;
  /** Ended before it ever started: the shim, which keeps an entry of it, must not be asked about it again. */
  abandoned?: boolean;
  /** Whether it started, once this daemon asked for that: settles with the answer. */
  starting?: Promise<boolean>;
  /** Set when the end is known; reported once. */
  exit?: Exit;
  settled?: Promise<void>;
  /** Settles when the wait for its end is over. */
  ended: Promise<void>;
  /** What the shim's State says of its end, where Wait does not answer. */
  known: PromiseWithResolvers<{ exitStatus: number; exitedAt: Timestamp | undefined }>;
  /** Its removal from the shim, from when it is asked for. */
  deleting?: Promise<void>;
  /** When SIGKILL was first sent, performance.now(). */
  killedAt?: number;
};
/** A container as it is handed over to its pod. */
export type NewContainer = Omit<LiveContainer, "ended" | "known">;

export type PodDeps = {
  events: HandlerEvents;
  tookOom(containerId: string): boolean;
  /** Calls when the shim reports a container's end. */
  onExit(containerId: string, listener: () => void): Disposable;
  /** `SHIM delete` for what is left of a container. */
  deleteLeftovers(id: string, bundle: string): Promise<{ code: number } | undefined>;
  /** Ends the machine that a dead shim left. */
  endMachine(): Promise<void>;
  killProcess(process: ProcessState | undefined): void;
  /** How long the shim may take to answer a question. */
  answerMs: number;
  stopMs: number;
  now(): bigint;
  failed(error: unknown, message: string): void;
};

/** What an exit event may be ahead of Wait's answer before we ask. */
const eventGraceMs = 1_000;
/** How long until a Wait that failed is tried again, at first and at most. */
const waitAgainMs = { first: 100, most: 10_000 };

const nanos = ({ seconds, nanos }: Timestamp): bigint => seconds * 1_000_000_000n + BigInt(nanos);

/** SIGKILL. gVisor's shim says 128 when the sandbox's process went away under the container. */
const killedCode = 137;

/**
 * A pod's shim as this daemon sees it: the connection and what runs behind it. Wait is the truth about exits; the
 * connection's close is the death of the shim, after which nothing is known that is not written down.
 */
export class ShimPod {
  readonly id: string;
  readonly stateDir: string;
  readonly state: ShimState;
  readonly task: TaskClient;
  readonly sandbox: SandboxClient;
  readonly log: ShimLog;
  /** The shim holds on to something that cannot be deleted: it will not end when it is asked to. */
  stuck = false;
  /** The shim has not answered in time: it is asked nothing more. */
  hung = false;
  /** Of a pod that waited for a checkpoint: the start of its holder, once it was asked for. */
  holderStart?: Promise<void>;
  readonly containers = new Map<string, LiveContainer>();
  readonly #shim: ShimConnection;
  readonly #deps: PodDeps;
  readonly #resources = new AsyncDisposableStack();
  readonly #release = new AbortController();
  /** Nothing is reported any more: the pod is being stopped, or the handler let go of it. */
  #quiet = false;
  readonly #gone = Promise.withResolvers<void>();

  constructor(
    pod: { id: string; stateDir: string; state: ShimState; shim: ShimConnection; log: ShimLog },
    deps: PodDeps,
  ) {
    this.id = pod.id;
    this.stateDir = pod.stateDir;
    this.state = pod.state;
    this.task = pod.shim.task;
    this.sandbox = sandboxClient(pod.shim.connection);
    this.#shim = pod.shim;
    this.#deps = deps;
    this.log = this.#resources.use(pod.log);
    void pod.shim.connection.closed.then((reason) => this.#died(reason.message));
  }

  get alive(): boolean {
    return this.#shim.connection.open;
  }

  /** Settles when the shim's connection closed and its containers were reported. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  add(container: NewContainer): LiveContainer {
    const live: LiveContainer = {
      ...container,
      ended: Promise.resolve(),
      known: Promise.withResolvers(),
    };
    this.containers.set(container.id, live);
    live.ended = this.#watch(live);
    return live;
  }

  /** A container whose end is known and was reported. */
  addEnded(container: NewContainer): LiveContainer {
    const done = Promise.resolve();
    const live: LiveContainer = { ...container, settled: done, ended: done, known: Promise.withResolvers() };
    this.containers.set(container.id, live);
    return live;
  }

  /** Aborts when this daemon stops following the pod. */
  get released(): AbortSignal {
    return this.#release.signal;
  }

  /** Ends the connection, which is the shim's death to everybody here; settles when that is reported. */
  async disconnect(): Promise<void> {
    this.#shim.connection.close();
    await this.gone;
  }

  /** Stops following the pod. What runs goes on. */
  async release(): Promise<void> {
    this.#quiet = true;
    this.#release.abort();
    this.#shim.connection.close();
    for (const container of this.containers.values()) {
      container.output.close();
      container.input?.[Symbol.dispose]();
      container.held?.[Symbol.dispose]();
    }
    await this.#resources.disposeAsync();
  }

  /** From now on the end of the shim and of the holder is what was asked for. */
  quiet(): void {
    this.#quiet = true;
  }

  /** Wait is the truth; where a shim cannot give it, State is asked, and Wait again. */
  async #watch(container: LiveContainer): Promise<void> {
    let isHinted = false;
    using _hint = this.#deps.onExit(container.id, () => {
      // However many events a shim sends.
      if (isHinted) return;
      isHinted = true;
      setTimeout(() => {
        isHinted = false;
        void this.ask(container);
      }, eventGraceMs).unref();
    });
    for (let pause = waitAgainMs.first; ; pause = Math.min(2 * pause, waitAgainMs.most)) {
      try {
        const wait = this.task.wait({ id: container.id });
        const { exitStatus, exitedAt } = await Promise.race([wait, container.known.promise]);
        return await this.settle(container, exitStatus, exitedAt && nanos(exitedAt));
      } catch (error) {
        // The connection's close is handled for all containers at once.
        if (!this.alive || hasCode(error, "unavailable")) return;
        if (pause === waitAgainMs.first)
          this.#deps.failed(error, `Cannot wait for container ${container.id}`);
      }
      if (await this.ask(container)) continue;
      await sleep(pause, undefined, { signal: this.released, ref: false }).catch(() => {});
      if (this.released.aborted) return;
    }
  }

  /** Asks the shim whether a container has ended; its word then counts for Wait's. */
  async ask(container: LiveContainer): Promise<boolean> {
    if (container.settled !== undefined) return true;
    try {
      const { status, exitStatus, exitedAt } = await this.task.state(
        { id: container.id },
        { signal: this.released, timeoutMs: this.#deps.answerMs },
      );
      if (status !== Status.STOPPED) return false;
      container.known.resolve({ exitStatus, exitedAt });
      return true;
    } catch (error) {
      if (!hasCode(error, "not-found")) return false;
      // Whatever it was, it is no more, and its code is lost.
      container.known.resolve({ exitStatus: 255, exitedAt: undefined });
      return true;
    }
  }

  /** Writes the exit down, lets the log catch up, and reports. Once, and whoever asks waits until it is done. */
  settle(container: LiveContainer, code: number, finishedAt = this.#deps.now()): Promise<void> {
    container.settled ??= this.#settle(container, code, finishedAt);
    return container.settled;
  }

  async #settle(container: LiveContainer, code: number, finishedAt: bigint): Promise<void> {
    const oomKilled = this.#tookOom(container, code);
    // Of a sandbox that ran out of memory the process may still be on its way out.
    const lost = code === 128 && (oomKilled || this.#processGone(container));
    const exit: Exit = { code: lost ? killedCode : code & 0xff, finishedAt, oomKilled };
    container.exit = exit;
    container.held?.[Symbol.dispose]();
    try {
      writeExit(container.stateDir, exit);
      await container.output.drained(AbortSignal.timeout(drainMs));
    } catch (error) {
      this.#deps.failed(error, `Cannot finish the output of container ${container.id}`);
    }
    container.output.endClients();
    container.input?.[Symbol.dispose]();
    // An exit may overtake the answer to start. One of a start that failed is told by that answer alone.
    if ((await container.starting) === false || this.#released) return;
    this.#deps.events.containerExited(container.id, exit);
  }

  get #released(): boolean {
    return this.#resources.disposed;
  }

  #processGone({ state: { process } }: LiveContainer): boolean {
    return !!process && !isAlive({ pid: process.pid, startTime: BigInt(process.startTime) });
  }

  /** An exit is told, whatever cannot be read about it (no descriptors are left). */
  #tookOom(container: LiveContainer, code: number): boolean {
    try {
      return this.#oomKilled(container, code);
    } catch (error) {
      this.#deps.failed(error, `Cannot learn whether container ${container.id} was out of memory`);
      return false;
    }
  }

  #oomKilled(container: LiveContainer, code: number): boolean {
    if (this.#deps.tookOom(container.id)) return true;
    if (code !== 0 && readMemory(container.stateDir).exceeded) return true;
    const { cgroups, oomKills: before } = container.state;
    if (code === 0 || !cgroups || before === undefined) return false;
    return (oomKills(cgroups) ?? before) > before;
  }

  /** Reports the sandbox's end, from when its containers are known here. */
  async watchHolder(): Promise<void> {
    const { holder, sandboxApi } = this.state;
    if (!holder && !sandboxApi) return;
    try {
      const { exitStatus } = sandboxApi
        ? await this.sandbox.waitSandbox({ sandboxId: this.id })
        : await this.task.wait({ id: this.id });
      if (this.#quiet) return;
      await this.#sandboxGone(`The sandbox ended with exit code ${exitStatus}`);
    } catch (error) {
      if (this.alive && !this.#quiet)
        this.#deps.failed(error, `Cannot wait for the sandbox of pod ${this.id}`);
    }
  }

  async #sandboxGone(message: string): Promise<void> {
    const containers = [...this.containers.values()];
    if (!this.alive) await this.#deps.endMachine();
    // Behind gVisor and in a VM they went with it; where the wall is namespaces they must be sent after it.
    await Promise.all(
      containers.map(async ({ id, exit }) => {
        if (this.alive && !exit)
          await this.task.kill({ id, signal: 9, all: true }, { timeoutMs: followMs }).catch(() => {});
      }),
    );
    const all = Promise.all(containers.map((container) => container.ended));
    if (this.alive) await Promise.race([all, sleep(followMs, undefined, { ref: false })]);
    // One `delete` that does not end takes the time of all: what is left then is tried again at the removal.
    const deadline = performance.now() + this.#deps.stopMs;
    for (const container of containers) {
      if (container.exit) continue;
      if (performance.now() < deadline) await this.cleanUp(container.id, container.stateDir);
      this.#deps.killProcess(container.state.process);
    }
    await Promise.all(containers.map((container) => this.settle(container, killedCode)));
    if (this.#quiet) return;
    this.#quiet = true;
    if (!this.alive && (this.state.holder || this.state.sandboxApi))
      await this.cleanUp(this.id, this.stateDir);
    this.#deps.events.sandboxExited(this.id, message);
  }

  async #died(reason: string): Promise<void> {
    try {
      if (this.#quiet) return;
      // A shim that is dead watches nothing, but what it started may run on: it must not.
      await this.#sandboxGone(`The shim died: ${reason}`);
    } finally {
      this.#gone.resolve();
    }
  }

  async cleanUp(id: string, stateDir: string): Promise<void> {
    await this.#deps.deleteLeftovers(id, bundleOf(stateDir, id));
  }
}
