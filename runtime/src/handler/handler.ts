import type { Duplex, Readable, Writable } from "node:stream";
import type { PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";
import type { Spec } from "../spec/oci.ts";

/**
 * What stands between the CRI and a wall. One implementation per kind of runtime: oci (command line under
 * conmon) and shim (containerd shim v2). The CRI layer keeps the records and their state machines; a handler
 * holds no state that a kill -9 may not lose: whatever it must find again it returns as `HandlerState`, which
 * the caller stores in the record before it goes on.
 *
 * Life of a pod:      runSandbox → (containers) → stopSandbox → removeSandbox
 * Life of a container: create → start → (exec, attach, …) → exit → remove
 * Every call is idempotent on the way down: stop, kill and remove of something gone succeed.
 */
export interface Handler {
  readonly name: string;
  readonly kind: "oci" | "shim";
  /** Revision of the profile that the handler serves, "" without one. */
  readonly revision: string;
  features(): HandlerFeatures;

  /** Starts what the pod as a whole needs (nothing for plain namespaces, the sandbox for gVisor and VMs). */
  runSandbox(pod: SandboxLaunch, signal: AbortSignal): Promise<HandlerState>;
  stopSandbox(pod: SandboxRef, signal: AbortSignal): Promise<void>;
  removeSandbox(pod: SandboxRef, signal: AbortSignal): Promise<void>;

  /**
   * Prepares the container up to its first instruction; the process exists and waits. What the runtime refuses for
   * the container's own sake (its command, its mounts) may be left for `start` to say.
   */
  create(container: ContainerLaunch, signal: AbortSignal): Promise<HandlerState>;
  /** Returns what is to be stored from now on, where starting changed it. */
  start(container: ContainerRef, signal: AbortSignal): Promise<HandlerState | undefined>;
  /** Sends a signal to the container's first process, or with `all` to every process. */
  kill(container: ContainerRef, signo: number, all: boolean, signal: AbortSignal): Promise<void>;
  remove(container: ContainerRef, signal: AbortSignal): Promise<void>;
  /** New limits for a running container. */
  update(
    container: ContainerRef,
    resources: NonNullable<Spec["linux"]>["resources"],
    signal: AbortSignal,
  ): Promise<void>;
  /**
   * Writes the container's processes as files to `directory`/checkpoint, its specification to spec.dump there and
   * what it changed in its root file system to rootfs-diff.tar, which `saveRoot` does where that is on the node; and
   * lets it go on. Absent where nothing can be saved, as of a VM.
   */
  checkpoint?(
    container: ContainerRef,
    directory: string,
    saveRoot: (file: string) => Promise<void>,
    signal: AbortSignal,
  ): Promise<void>;
  /**
   * Writes everything that runs in the pod as files to `directory`/checkpoint, and lets it go on. `containers` are all
   * that run in it. Absent where a pod is not one thing.
   */
  checkpointPod?(
    pod: SandboxRef,
    containers: ContainerRef[],
    directory: string,
    signal: AbortSignal,
  ): Promise<void>;
  /** Whose memory images a container can be made from ({@link ContainerLaunch.restoreFrom}). Absent: nothing is. */
  readonly restores?: MemoryImage;
  /**
   * Puts what was saved, the files of `images`, in place in a pod that was launched with `awaitsRestore` and in which
   * nothing has started: its next `count` containers, made from their own specifications, go on from there when the
   * last of them starts. The files may go then. Absent where a pod is not one thing.
   */
  stageRestore?(pod: SandboxRef, images: string, count: number): void;
  /** undefined when the container is gone or has nothing to say. */
  stats(container: ContainerRef, signal: AbortSignal): Promise<Usage | undefined>;
  sandboxStats(pod: SandboxRef, signal: AbortSignal): Promise<Usage | undefined>;
  /** Returns after the new file exists; the old one gets nothing more. */
  reopenLog(container: ContainerRef, signal: AbortSignal): Promise<void>;

  /** Runs a process in the container. Resolves once it runs (or rejects); `exited` settles after all output was delivered. */
  exec(container: ContainerRef, request: ExecRequest, signal: AbortSignal): Promise<ExecProcess>;
  /** Connects to the container's own stdio. Output starts now; nothing is replayed. */
  attach(container: ContainerRef, signal: AbortSignal): Promise<AttachSession>;
  /** A connection to 127.0.0.1:port, then [::1]:port, as a process inside the pod would make it. */
  portForward(pod: SandboxRef, port: number, signal: AbortSignal): Promise<Duplex>;

  /**
   * After a restart of the daemon: take up watching what the records say, and report for each container what it
   * is now. Exits that happened meanwhile are reported here with their real code and time. While what holds the pod
   * lives and does not answer this fails as `deadline-exceeded` or `unavailable`, calls on the pod fail too, and it can
   * be tried again; with `end` what holds it is ended instead.
   */
  recover(
    pod: SandboxRef,
    containers: ContainerRef[],
    signal: AbortSignal,
    end?: boolean,
  ): Promise<Recovered>;
}

/** What a handler tells the CRI layer on its own: exits come exactly once per container, after `create` returned. */
export interface HandlerEvents {
  containerExited(id: string, exit: Exit): void;
  /** The pod's own holder is gone (shim died, VM crashed): its containers are reported exited first. */
  sandboxExited(id: string, message: string): void;
}

export type Exit = {
  /** 0–255; 128+n for a signal. 255 when the truth is lost. */
  code: number;
  /** Unix nanoseconds. */
  finishedAt: bigint;
  oomKilled: boolean;
};

/** CRIU's, of processes on the node's kernel, or gVisor's, of a sandbox as a whole. */
export type MemoryImage = "criu" | "gvisor";

/** JSON that a handler needs to find its things again. Stored in the record by the caller. */
export type HandlerState = Record<string, unknown>;

export type HandlerFeatures = {
  recursiveReadOnlyMounts: boolean;
  userNamespaces: boolean;
  /** userNamespaces together with hostNetwork. */
  userNamespacesHostNetwork: boolean;
};

/** Pinned namespaces by path. An absent one is the host's. */
export type Namespaces = { net?: string; ipc?: string; uts?: string; pid?: string; user?: string };

export type SandboxLaunch = {
  id: string;
  /** Own directory on tmpfs, 0700, made by the caller: bundle and sockets go here. */
  stateDir: string;
  namespaces: Namespaces;
  hostname: string;
  /** Spec of a holder container (pause), for handlers that need one. Its root.path is `rootfs`. */
  spec: Spec;
  /** Mounted root file system of the holder, "" when the handler needs none. */
  rootfs: string;
  /** The same as a disk of its own, for a wall that is given no directory: a file, or a block device of the node. */
  disk?: string;
  /** Absolute; where the pod's logs go. May be "". */
  logDirectory: string;
  annotations: Record<string, string>;
  /** The pod as the CRI described it, for shims that want to know. */
  config?: PodSandboxConfig;
  /** Nothing runs in it before its first container does, so that a checkpoint can take its place until then. */
  awaitsRestore?: boolean;
};

export type SandboxRef = { id: string; stateDir: string; state: HandlerState };

export type ContainerLaunch = {
  id: string;
  sandbox: SandboxRef;
  /** Own directory on tmpfs, 0700, made by the caller. The handler writes config.json there. */
  stateDir: string;
  /** Mounted by the snapshotter; spec.root.path is the same. */
  rootfs: string;
  /** As of {@link SandboxLaunch.disk}. */
  disk?: string;
  spec: Spec;
  tty: boolean;
  stdin: boolean;
  /** Close stdin after the first attached client left. */
  stdinOnce: boolean;
  /** Absolute path of the CRI log file; "": discard. */
  logPath: string;
  /** Directory with a memory image: the container goes on from there when it starts. Stays until then. */
  restoreFrom?: string;
};

export type ContainerRef = {
  id: string;
  sandbox: SandboxRef;
  stateDir: string;
  state: HandlerState;
  tty: boolean;
  stdin: boolean;
  stdinOnce: boolean;
  logPath: string;
};

export type ExecRequest = {
  /** Derived from the container's own process by the caller: args, env, cwd, user, capabilities, terminal. */
  process: NonNullable<Spec["process"]>;
  /** Streams that the client wants. stderr is undefined with a tty. */
  stdin?: Readable;
  stdout?: Writable;
  stderr?: Writable;
  tty: boolean;
};

export type ExecProcess = {
  /** Exit code; settles after all output was written to the sinks (bounded drain when a child holds the pipe). */
  exited: Promise<number>;
  resize(width: number, height: number): Promise<void>;
  /** Kills the process and what it started. */
  kill(): Promise<void>;
};

export type AttachSession = {
  stdin?: Writable;
  stdout: Readable;
  /** undefined with a tty. */
  stderr?: Readable;
  resize(width: number, height: number): Promise<void>;
  close(): void;
};

/** What a cgroup or a sandbox used. Times in nanoseconds, sizes in bytes. */
export type Usage = {
  timestamp: bigint;
  cpuNanos: bigint;
  memoryUsage: bigint;
  /** usage − inactive file pages. */
  memoryWorkingSet: bigint;
  memoryRss: bigint;
  pageFaults: bigint;
  majorPageFaults: bigint;
  /** 0: no limit. */
  memoryLimit: bigint;
  pids: bigint;
};

export type Recovered = {
  /** false: the sandbox's holder is gone, the pod is not ready. */
  sandboxAlive: boolean;
  containers: Map<
    string,
    { state: "created" | "running" } | { state: "exited"; exit: Exit } | { state: "unknown" }
  >;
};
