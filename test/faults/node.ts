import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, openSync, writeFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { bundledRuntime } from "../bench/program.ts";
import { tool } from "../tools/cache.ts";
import { outcome, run } from "../tools/run.ts";
import { removeTraces } from "./traces.ts";

/** How the stand-ins for runc and for a CNI plugin behave, by command; nothing: as the real ones. */
export type Modes = Record<string, "fail" | "hang" | "garbage" | "die" | "late">;

/** A node of its own: daemon, network, registry mirror, and the places where things can go wrong. */
export type Node = AsyncDisposable & {
  name: string;
  cri: CriClient;
  /** Directories that nobody else's paths have in them. */
  disk: string;
  run: string;
  /** tmpfs of their own, so that they can be full. */
  state: string;
  root: string;
  addresses: string;
  cgroup: string;
  logs: string;
  daemonLog: string;
  /** The daemon's process, undefined while it is away. */
  pid(): number | undefined;
  /** Starts the daemon if it does not run, again and again until it serves. */
  start(): Promise<void>;
  end(signal: "SIGKILL" | "SIGTERM"): Promise<void>;
  /** Orders the stand-ins: `runc` by subcommand, `cni` by CNI_COMMAND. */
  order(which: "runc" | "cni", modes: Modes): void;
};

/** Of this process: two runs may go side by side. */
const own = process.pid % 50;
const subnet = `10.${140 + own}`;
/** The first of the host ports that pods may ask for. */
export const firstHostPort = 23_000 + 10 * own;

/**
 * A fake in front of runc: does what the file of its subcommand's name says (fail, hang until told otherwise, die
 * half-way, fail after the work was done), or nothing of that.
 */
const runcStandIn = (modes: string): string => `#!/bin/sh
for each in "$@"; do
  case $each in create|start|delete|exec|run|state|update) command=$each; break;; esac
done
mode=
[ -e "${modes}/runc.$command" ] && read -r mode <"${modes}/runc.$command"
case $mode in
  fail) echo "runc $command fails by order" >&2; exit 1;;
  hang) while [ -e "${modes}/runc.$command" ]; do sleep 0.1; done; echo "runc $command hung by order" >&2; exit 1;;
  die) ${tool("runc")} "$@" & sleep 0.02; kill -9 $!; exit 1;;
  late) ${tool("runc")} "$@"; echo "runc $command fails late by order" >&2; exit 1;;
  *) exec ${tool("runc")} "$@";;
esac
`;

/** A fake at the end of the chain of plugins: passes on the result, fails, hangs until told otherwise, prints rubbish. */
const cniStandIn = (modes: string): string => `#!/bin/sh
mode=
[ -e "${modes}/cni.$CNI_COMMAND" ] && read -r mode <"${modes}/cni.$CNI_COMMAND"
case $mode in
  fail) cat >/dev/null; echo '{"cniVersion":"1.0.0","code":100,"msg":"fails by order"}'; exit 1;;
  hang) while [ -e "${modes}/cni.$CNI_COMMAND" ]; do sleep 0.1; done; exit 1;;
  garbage) cat >/dev/null; echo '{"cniVersion":'; exit 0;;
esac
case $CNI_COMMAND in
  ADD) sed 's/.*"prevResult"://; s/}$//';;
  VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
exit 0
`;

const startMs = 60_000;

export const createNode = async (registry: string): Promise<Node> => {
  const disk = await mkdtemp(join(tmpdir(), "bh-faults-"));
  const home = await mkdtemp("/run/bh-faults-");
  const name = `bhf${process.pid}`;
  const [modes, state, root] = [join(disk, "modes"), join(home, "s"), join(disk, "root")];
  const [confDir, plugins, handlersDir] = [join(disk, "net.d"), join(disk, "cni"), join(disk, "handlers.d")];
  for (const dir of [modes, state, root, confDir, plugins, handlersDir, join(disk, "logs")]) await mkdir(dir);
  await run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=711", "bh-faults", state]);
  await run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=711", "bh-faults", root]);
  const program = async (path: string, text: string): Promise<void> => {
    await writeFile(path, text);
    chmodSync(path, 0o755);
  };
  await program(join(disk, "runc"), runcStandIn(modes));
  await program(join(plugins, "stand-in"), cniStandIn(modes));
  const runsc = join(disk, "runsc.toml");
  await writeFile(
    runsc,
    `binary_name = "${tool("runsc")}"\nroot = "${join(state, "runsc")}"\n\n[runsc_config]\n  platform = "systrap"\n`,
  );
  await writeFile(
    join(confDir, "10.conflist"),
    JSON.stringify({
      cniVersion: "1.0.0",
      name,
      plugins: [
        {
          type: "bridge",
          bridge: name,
          isGateway: true,
          ipMasq: true,
          ipam: {
            type: "host-local",
            dataDir: join(home, "ipam"),
            ranges: [[{ subnet: `${subnet}.0.0/16` }]],
            routes: [{ dst: "0.0.0.0/0" }],
          },
        },
        { type: "portmap", capabilities: { portMappings: true } },
        { type: "stand-in" },
      ],
    }),
  );
  const socket = join(home, "cri.sock");
  const deadlines = { create: 10, start: 10, stop: 5 };
  await writeFile(
    join(disk, "runtime.yaml"),
    JSON.stringify({
      socket,
      root,
      state: join(state, "state"),
      handlersDir,
      cni: { binDirs: [tool("cni"), plugins], confDir },
      registries: { mirrors: { "registry.test": [`http://${registry}`] } },
      runtimes: [
        { name: "runc", kind: "oci", binary: join(disk, "runc"), deadlines },
        {
          name: "gvisor",
          kind: "shim",
          binary: tool("containerd-shim-runsc-v1"),
          optionsTypeUrl: "io.containerd.runsc.v1.options",
          configPath: runsc,
          wall: "kernel",
          runsc: { binary: tool("runsc"), root: join(state, "runsc") },
          deadlines: { create: 30, start: 30, stop: 10 },
        },
      ],
    }),
  );
  const main = await bundledRuntime(join(disk, "program"));
  const cri = connectCri(socket);
  const daemonLog = join(disk, "daemon.log");
  let child: ChildProcess | undefined;
  const lives = (): boolean => child !== undefined && child.exitCode === null && child.signalCode === null;
  const serves = (): Promise<boolean> =>
    cri.runtime.version(create(RuntimeService.method.version.input), AbortSignal.timeout(1000)).then(
      () => true,
      () => false,
    );
  const node: Node = {
    name,
    cri,
    disk,
    run: home,
    state,
    root,
    addresses: join(home, "ipam"),
    cgroup: name,
    logs: join(disk, "logs"),
    daemonLog,
    pid: () => (lives() ? child?.pid : undefined),
    async start() {
      const end = Date.now() + startMs;
      for (;;) {
        if (!lives()) {
          const log = openSync(daemonLog, "a");
          child = spawn(process.execPath, [main, "serve", "--config", join(disk, "runtime.yaml")], {
            stdio: ["ignore", log, log],
            detached: true,
          });
        }
        if (await serves()) return;
        if (Date.now() > end) throw new Error(`The daemon does not serve: see ${daemonLog}`);
        await sleep(50);
      }
    },
    async end(signal) {
      if (child === undefined || !lives()) return;
      const ended = once(child, "exit");
      child.kill(signal);
      await ended;
    },
    order(which, orders) {
      for (const [command, mode] of Object.entries(orders))
        writeFileSync(join(modes, `${which}.${command}`), `${mode}\n`);
    },
    async [Symbol.asyncDispose]() {
      await node.end("SIGTERM");
      cri[Symbol.dispose]();
      await removeTraces(node);
      for (const dir of [state, root]) await outcome(["umount", "-l", dir]);
      await rm(home, { recursive: true, force: true });
      await rm(disk, { recursive: true, force: true });
    },
  };
  await node.start();
  return node;
};

/** Takes orders back. */
export const lift = async (node: Node): Promise<void> => {
  const modes = join(node.disk, "modes");
  await rm(modes, { recursive: true, force: true });
  await mkdir(modes);
};
