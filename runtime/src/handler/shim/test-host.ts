import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import pino from "pino";
import { createLinux } from "../../linux/linux-ffi.ts";
import { holderProgram } from "../../spec/holder-program.ts";
import type { Process, Spec } from "../../spec/oci.ts";
import type {
  ContainerLaunch,
  ContainerRef,
  Exit,
  HandlerState,
  SandboxLaunch,
  SandboxRef,
} from "../handler.ts";
import { openShimHost, type ShimHost } from "./host.ts";
import { createShimHandler } from "./shim.ts";

/** A place on this machine where the host tests run real shims. */
const bin = join(homedir(), ".cache/bulkhead/bin");
const base: Process = {
  user: { uid: 0, gid: 0 },
  args: [],
  env: ["PATH=/bin"],
  cwd: "/",
  noNewPrivileges: true,
  capabilities: { bounding: ["CAP_KILL"], effective: ["CAP_KILL"], permitted: ["CAP_KILL"] },
};

export type TestPod = { launch: SandboxLaunch; ref: SandboxRef };
export type Shell = Partial<Pick<ContainerLaunch, "tty" | "stdin" | "stdinOnce" | "logPath">>;

export type TestHost = AsyncDisposable & Awaited<ReturnType<typeof openTestHost>>;

/** A program that runs {@link Fault}'s fake shim. */
export const fakeShim = (dir: string): string => {
  const path = join(dir, "containerd-shim-fake-v1");
  const script = join(dir, "fake-shim.mjs");
  const esbuild = join(import.meta.dirname, "../../../../node_modules/.bin/esbuild");
  const source = join(import.meta.dirname, "fake-shim.ts");
  // In one file: a shim starts in each test, and compiling it would be most of the test's time.
  const flags = ["--bundle", "--platform=node", "--format=esm", "--log-level=error"];
  // grpc-js is CommonJS.
  flags.push(
    '--banner:js=import { createRequire } from "node:module"; const require = createRequire(import.meta.url);',
  );
  execFileSync(esbuild, [source, ...flags, `--outfile=${script}`]);
  writeFileSync(path, `#!/bin/sh\nexec '${process.execPath}' '${script}' "$@"\n`, { mode: 0o755 });
  return path;
};

type Kind = "gvisor" | "runc" | "runc-1.6" | "unshare" | "fake";

/** `kind` names the shim; each test host has its own directories, network namespace and cgroup. */
export async function openTestHost(kind: Kind) {
  const dir = mkdtempSync(`/tmp/bh-shim-${kind}-`);
  const linux = createLinux();
  const stack = new AsyncDisposableStack();
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const pause = join(dir, "pause");
  writeFileSync(pause, holderProgram(process.arch), { mode: 0o755 });
  const reaper = join(dir, "bulkhead-exec-reaper");
  execFileSync("cc", [
    "-Os",
    "-static",
    "-o",
    reaper,
    join(import.meta.dirname, "../../monitor/exec/reaper.c"),
  ]);
  const netns = join(dir, "net");
  writeFileSync(netns, "");
  await linux.pinNamespaces({ net: netns }, "pod");
  stack.defer(() => linux.umount(netns, 2));

  const cgroup = `/bh-shim-${process.pid}-${kind}`;
  stack.defer(async () => {
    for (const controller of readdirSync("/sys/fs/cgroup")) {
      const parent = join("/sys/fs/cgroup", controller, cgroup);
      const below = existsSync(parent) ? readdirSync(parent, { recursive: true, withFileTypes: true }) : [];
      const directories = below
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(entry.parentPath, entry.name));
      if (existsSync(parent)) for (const each of [...directories.reverse(), parent]) await removeCgroup(each);
    }
  });
  const runscRoot = join(dir, "runsc");
  // runsc keeps an empty network namespace mounted in its root for as long as the machine runs.
  const nullNetns = join(runscRoot, "bulkhead/null-netns");
  stack.defer(() => (existsSync(nullNetns) ? linux.umount(nullNetns, 2) : undefined));
  const configPath = join(dir, "runsc.toml");
  writeFileSync(
    configPath,
    `binary_name = "${bin}/runsc"\nroot = "${runscRoot}"\n[runsc_config]\nplatform = "systrap"\n`,
  );
  const common = {
    name: kind,
    allowedAnnotations: [],
    deadlines: { create: 60, start: 60, stop: 30 },
    env: {},
    kind: "shim" as const,
  };
  const runc = {
    ...common,
    optionsTypeUrl: "containerd.runc.v1.Options",
    wall: "namespaces" as const,
    env: { PATH: `${bin}:/usr/sbin:/usr/bin:/sbin:/bin` },
  };
  const configs: { [K in Kind]: () => ShimHandlerConfig } = {
    gvisor: () => ({
      ...common,
      binary: join(bin, "containerd-shim-runsc-v1"),
      optionsTypeUrl: "io.containerd.runsc.v1.options",
      configPath,
      wall: "kernel",
      runsc: { binary: join(bin, "runsc"), root: runscRoot, network: "sandbox" },
    }),
    runc: () => ({ ...runc, binary: join(bin, "containerd-shim-runc-v2") }),
    // As Debian 12 has it: no BootstrapParams, task.v2, an address in plain text.
    "runc-1.6": () => ({
      ...runc,
      binary: join(bin, "../debian/containerd/usr/bin/containerd-shim-runc-v2"),
    }),
    unshare: () => ({
      ...common,
      binary: join(bin, "containerd-shim-unshare-v1"),
      optionsTypeUrl: "",
      wall: "namespaces",
      sandboxApi: true,
    }),
    fake: () => ({ ...runc, binary: fakeShim(dir) }),
  };
  const config = configs[kind]();

  const exits = new Map<string, Exit[]>();
  const sandboxExits: string[] = [];
  const waiting: (() => void)[] = [];
  const notify = () => {
    for (const wake of waiting.splice(0)) wake();
  };
  const events = {
    containerExited: (id: string, exit: Exit) => {
      exits.set(id, [...(exits.get(id) ?? []), exit]);
      notify();
    },
    sandboxExited: (id: string) => {
      sandboxExits.push(id);
      notify();
    },
  };
  const until = async (condition: () => boolean, what: string) => {
    const deadline = Date.now() + 20_000;
    while (!condition()) {
      if (Date.now() > deadline) throw new Error(`Not in time: ${what}`);
      const { promise, resolve } = Promise.withResolvers<void>();
      waiting.push(resolve);
      const timer = setTimeout(resolve, 100);
      await promise;
      clearTimeout(timer);
    }
  };

  const openHandler = async (overrides: Partial<ShimHandlerConfig> = {}) => {
    const life = new AsyncDisposableStack();
    const host: ShimHost = life.use(await openShimHost(join(dir, "shims"), join(dir, "bin"), linux));
    const handler = life.use(
      await createShimHandler({ ...config, ...overrides } as ShimHandlerConfig, {
        host,
        linux,
        network: {
          dial: async () => {
            throw new Error("gVisor's ports are not dialled");
          },
        },
        events,
        log: pino({ level: process.env.SHIM_LOG ?? "silent" }),
        pauseProgram: pause,
        restoreProgram: reaper,
      }),
    );
    return { handler, [Symbol.asyncDispose]: () => life.disposeAsync() };
  };

  /** A root with busybox and the pause program: a container's own, since gVisor writes beside it. */
  const rootfs = (id: string): string => {
    const root = join(dir, "rootfs", id);
    for (const each of ["bin", "proc", "dev", "tmp", "sys"]) mkdirSync(join(root, each), { recursive: true });
    copyFileSync("/bin/busybox", join(root, "bin/busybox"));
    copyFileSync(pause, join(root, "pause"));
    for (const applet of ["sh", "cat", "sleep", "echo", "head", "nc", "stty", "dd", "yes", "uname"])
      symlinkSync("busybox", join(root, "bin", applet));
    return root;
  };

  let counter = 0;
  const newId = (name: string) => `${name}${process.pid}x${counter++}`.padEnd(64, "f");
  const specOf = (root: string, id: string, pod: string, process: Process): Spec => ({
    ociVersion: "1.2.0",
    hostname: "pod",
    root: { path: root },
    process,
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755"] },
      {
        destination: "/dev/pts",
        type: "devpts",
        source: "devpts",
        options: ["newinstance", "ptmxmode=0666"],
      },
    ],
    linux: {
      cgroupsPath: `${cgroup}/pod${pod.slice(0, 12)}/${id}`,
      namespaces: [
        { type: "network", path: netns },
        { type: "pid" },
        { type: "ipc" },
        { type: "uts" },
        { type: "mount" },
      ],
      resources: { memory: { limit: 256 << 20 } },
    },
  });

  const newPod = (): SandboxLaunch => {
    const id = newId("pod");
    const root = rootfs(id);
    const stateDir = join(dir, "pods", id);
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    return {
      id,
      stateDir,
      namespaces: { net: netns },
      hostname: "pod",
      spec: specOf(root, id, id, { ...base, args: ["/pause"] }),
      rootfs: root,
      logDirectory: "",
      annotations: {},
    };
  };

  const newContainer = (sandbox: SandboxRef, args: string[], io: Shell = {}): ContainerLaunch => {
    const id = newId("ctr");
    const root = rootfs(id);
    const stateDir = join(dir, "containers", id);
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    return {
      id,
      sandbox,
      stateDir,
      rootfs: root,
      spec: specOf(root, id, sandbox.id, { ...base, args, terminal: io.tty ?? false }),
      tty: false,
      stdin: false,
      stdinOnce: false,
      logPath: join(dir, `${id}.log`),
      ...io,
    };
  };
  const refOf = (launch: ContainerLaunch, state: HandlerState): ContainerRef => ({
    ...launch,
    // As a record keeps it.
    state: JSON.parse(JSON.stringify(state)),
  });
  return {
    dir,
    config,
    cgroup,
    base,
    exits,
    sandboxExits,
    until,
    openHandler,
    newPod,
    newContainer,
    refOf,
    exitOf: async (id: string): Promise<Exit> => {
      await until(() => exits.has(id), `exit of ${id}`);
      return exits.get(id)![0]!;
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

/** Busy until the kernel is done with the last process. */
async function removeCgroup(directory: string): Promise<void> {
  for (let tries = 0; ; tries++)
    try {
      return rmdirSync(directory);
    } catch (error) {
      if (tries > 50) throw error;
      await sleep(20);
    }
}
