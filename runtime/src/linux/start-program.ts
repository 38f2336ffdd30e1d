import { EventEmitter } from "node:events";
import { closeSync } from "node:fs";
import { Socket } from "node:net";
import { constants } from "node:os";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import koffi from "koffi";
import { isExhausted } from "./exhausted.ts";
import { check, cstring, errnoError } from "./libc.ts";

/**
 * What a program is started with; what is not said is as with node:child_process. `pipe` is a connected pair of
 * sockets, `ignore` is /dev/null, a number one of our file descriptors, which stays ours.
 */
export type StartOptions = {
  stdio: "ignore" | readonly ("pipe" | "ignore" | number)[];
  cwd?: string;
  env?: Record<string, string | undefined>;
  /** In a session and process group of its own. */
  detached?: boolean;
  /** Kills it with `killSignal` (SIGTERM) when it aborts, and says so by the event "error". */
  signal?: AbortSignal;
  killSignal?: NodeJS.Signals;
};

type Streams = {
  [Index in 0 | 1 | 2]: Socket | null;
} & (Socket | null | undefined)[];

/** A started program. Emits "error" (it could not be started or was aborted; may go unheard), "exit" and "close" as a ChildProcess does. */
export type Program = EventEmitter<{
  error: [error: NodeJS.ErrnoException];
  exit: [code: number | null, signal: NodeJS.Signals | null];
  close: [code: number | null, signal: NodeJS.Signals | null];
}> & {
  /** Undefined when it could not be started. */
  readonly pid: number | undefined;
  /** False before its end is known. */
  readonly hasEnded: boolean;
  readonly stdio: Streams;
  readonly stdin: Socket;
  readonly stdout: Socket;
  readonly stderr: Socket;
  /** False when it has ended. */
  kill(signal: NodeJS.Signals): boolean;
  /** Lets our process end before it. */
  unref(): void;
};

const lib = koffi.load("libc.so.6");
const optional = (declaration: string): ReturnType<typeof lib.func> | undefined => {
  try {
    return lib.func(declaration);
  } catch {
    return undefined;
  }
};
const libc = {
  socketpair: lib.func("int socketpair(int, int, int, _Out_ int *)"),
  dup: lib.func("int fcntl(int, int, int)"),
  spawn: lib.func(
    "int posix_spawnp(_Out_ int *, const char *, const void *, const void *, const char **, const char **)",
  ),
  actions: lib.func("int posix_spawn_file_actions_init(void *)"),
  endActions: lib.func("int posix_spawn_file_actions_destroy(void *)"),
  dup2: lib.func("int posix_spawn_file_actions_adddup2(void *, int, int)"),
  open: lib.func("int posix_spawn_file_actions_addopen(void *, int, const char *, int, uint)"),
  chdir: lib.func("int posix_spawn_file_actions_addchdir_np(void *, const char *)"),
  /** Since glibc 2.34. */
  closeFrom: optional("int posix_spawn_file_actions_addclosefrom_np(void *, int)"),
  attributes: lib.func("int posix_spawnattr_init(void *)"),
  setFlags: lib.func("int posix_spawnattr_setflags(void *, short)"),
  setDefault: lib.func("int posix_spawnattr_setsigdefault(void *, const void *)"),
  waitpid: lib.func("int waitpid(int, _Out_ int *, int)"),
};

const AF_UNIX = 1;
const SOCK_STREAM_CLOEXEC = 0o2000001;
const F_DUPFD_CLOEXEC = 1030;
const O_RDWR = 2;
const WNOHANG = 1;
const SETSIGDEF = 0x04;
const SETSIGMASK = 0x08;
const SETSID = 0x80;
/** More than glibc's structures have on any architecture. */
const actionsSize = 128;
const attributesSize = 512;
const signalSetSize = 128;
/** Of a child that somebody else waited for: exit code 255. */
const unknownEnd = 0xff00;
/** A signal that got lost, or a thread that gets none (a worker), does not leave an end unseen for longer. */
const sweepMs = 1_000;

/** What each program begins with: no signal blocked, none ignored (Node ignores SIGPIPE). */
const attributesOf = (flags: number): Buffer => {
  const attributes = Buffer.alloc(attributesSize);
  libc.attributes(attributes);
  libc.setFlags(attributes, flags | SETSIGDEF | SETSIGMASK);
  libc.setDefault(attributes, Buffer.alloc(signalSetSize, 0xff));
  return attributes;
};
const attached = attributesOf(0);
const detached = attributesOf(SETSID);

/**
 * Starts a program as node:child_process does, in a third of the time: that one forks, which copies the page tables
 * of a daemon of 100 MB and has each page fault once more; posix_spawn(3) does not.
 *
 * Without file descriptors it throws before anything is made, where Node leaves a child without streams. Any other
 * failure to start comes as the event "error", which may go unheard.
 */
export const startProgram = (file: string, args: readonly string[], options: StartOptions): Program => {
  const kinds = options.stdio === "ignore" ? (["ignore", "ignore", "ignore"] as const) : options.stdio;
  const argv = [file, ...args].map(cstring);
  const envp = Object.entries(options.env ?? process.env).flatMap(([name, value]) =>
    value === undefined ? [] : [cstring(`${name}=${value}`)],
  );
  const cwd = options.cwd === undefined ? undefined : cstring(options.cwd);

  const ours: number[] = [];
  const theirs: number[] = [];
  const actions = Buffer.alloc(actionsSize);
  libc.actions(actions);
  const pid = [0];
  let failure: NodeJS.ErrnoException | undefined;
  try {
    /** Above all that is to be overwritten in the child. */
    const above = (fd: number): number => {
      if (fd >= kinds.length) return fd;
      const higher = check(libc.dup(fd, F_DUPFD_CLOEXEC, kinds.length), "fcntl");
      theirs.push(higher);
      return higher;
    };
    const sources = kinds.map((kind) => {
      if (kind === "ignore") return -1;
      if (kind !== "pipe") return above(kind);
      const pair = [0, 0];
      check(libc.socketpair(AF_UNIX, SOCK_STREAM_CLOEXEC, 0, pair), "socketpair");
      ours.push(pair[0]!);
      theirs.push(pair[1]!);
      return above(pair[1]!);
    });
    for (const [target, source] of sources.entries())
      if (source < 0) libc.open(actions, target, "/dev/null", O_RDWR, 0);
      else libc.dup2(actions, source, target);
    // All of ours close on exec; what a library opened otherwise must not get into a container either.
    libc.closeFrom?.(actions, kinds.length);
    if (cwd !== undefined) libc.chdir(actions, cwd);
    const errno = libc.spawn(
      pid,
      argv[0],
      actions,
      options.detached ? detached : attached,
      [...argv, null],
      [...envp, null],
    );
    if (errno !== 0) failure = errnoError(errno, `spawn ${file}`);
    if (isExhausted(failure)) throw failure;
  } catch (error) {
    for (const fd of ours) closeSync(fd);
    if (!isExhausted(error)) throw error;
    throw new RuntimeError("resource-exhausted", `Cannot run "${file}": no file descriptors are left`, {
      cause: error,
    });
  } finally {
    for (const fd of theirs) closeSync(fd);
    libc.endActions(actions);
  }
  return new Running(failure === undefined ? pid[0]! : failure, kinds, ours, options);
};

class Running extends EventEmitter implements Program {
  pid: number | undefined;
  readonly stdio: Streams;
  #streams: number;
  #ended: [code: number | null, signal: NodeJS.Signals | null] | undefined;

  constructor(
    started: number | NodeJS.ErrnoException,
    kinds: readonly ("pipe" | "ignore" | number)[],
    fds: number[],
    { signal, killSignal = "SIGTERM" }: StartOptions,
  ) {
    super();
    this.on("error", () => {});
    this.stdio = kinds.map((kind, index) =>
      kind === "pipe"
        ? new Socket({ fd: fds.shift()!, readable: index !== 0, writable: index === 0 || index > 2 })
        : null,
    ) as Streams;
    const streams = this.stdio.filter((stream) => stream !== null && stream !== undefined);
    this.#streams = streams.length;
    for (const stream of streams)
      stream.once("close", () => {
        this.#streams--;
        this.#closeIfOver();
      });
    if (typeof started !== "number") {
      for (const stream of streams) stream.destroy();
      process.nextTick(() => this.emit("error", started));
      return;
    }
    this.pid = started;
    children.add(started, (status) => this.#exited(status));
    if (signal === undefined) return;
    const abort = (): void => {
      if (this.#ended === undefined && this.kill(killSignal)) this.emit("error", abortError(signal));
    };
    if (signal.aborted) process.nextTick(abort);
    else {
      signal.addEventListener("abort", abort, { once: true });
      this.once("exit", () => signal.removeEventListener("abort", abort));
    }
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  get stdin(): Socket {
    return this.stdio[0] as Socket;
  }
  get stdout(): Socket {
    return this.stdio[1] as Socket;
  }
  get stderr(): Socket {
    return this.stdio[2] as Socket;
  }

  kill(signal: NodeJS.Signals): boolean {
    // Until it is waited for, its pid is nobody else's.
    if (this.pid === undefined || this.#ended !== undefined) return false;
    return process.kill(this.pid, signal);
  }

  unref(): void {
    if (this.pid !== undefined) children.unref(this.pid);
  }

  #exited(status: number): void {
    const signo = status & 0x7f;
    this.#ended = signo === 0 ? [(status >> 8) & 0xff, null] : [null, signalNames.get(signo) ?? "SIGKILL"];
    this.stdio[0]?.destroy();
    // What nobody reads must not keep it from being closed.
    for (const stream of this.stdio.slice(1))
      if (stream && stream.readableFlowing === null && stream.listenerCount("readable") === 0)
        stream.resume();
    this.emit("exit", ...this.#ended);
    this.#closeIfOver();
  }

  #closeIfOver(): void {
    if (this.#ended !== undefined && this.#streams === 0) this.emit("close", ...this.#ended);
  }
}

const abortError = (signal: AbortSignal): NodeJS.ErrnoException =>
  Object.assign(new Error("The operation was aborted", { cause: signal.reason }), {
    name: "AbortError",
    code: "ABORT_ERR",
  });

const signalNames = new Map(
  Object.entries(constants.signals).map(([name, number]) => [number, name as NodeJS.Signals]),
);

/** Waits for each of ours by its pid: what Node or somebody else started is theirs to wait for. */
const children = (() => {
  const running = new Map<number, { exited: (status: number) => void; isRef: boolean }>();
  let sweeper: NodeJS.Timeout | undefined;
  let listens = false;
  const reap = (): void => {
    const status = [0];
    for (const [pid, { exited }] of running) {
      const waited = libc.waitpid(pid, status, WNOHANG);
      if (waited === 0) continue;
      running.delete(pid);
      exited(waited === pid ? status[0]! : unknownEnd);
    }
    hold();
  };
  /** Our process lives for as long as somebody waits for one of them. */
  const hold = (): void => {
    if (running.size === 0) {
      clearInterval(sweeper);
      sweeper = undefined;
      return;
    }
    sweeper ??= setInterval(reap, sweepMs);
    if ([...running.values()].some(({ isRef }) => isRef)) sweeper.ref();
    else sweeper.unref();
  };
  return {
    add(pid: number, exited: (status: number) => void): void {
      running.set(pid, { exited, isRef: true });
      hold();
      if (listens) return;
      listens = true;
      process.on("SIGCHLD", reap);
      // It may have ended before.
      setImmediate(reap);
    },
    unref(pid: number): void {
      const child = running.get(pid);
      if (child) child.isRef = false;
      hold();
    },
  };
})();
