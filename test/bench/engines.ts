import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { inCache, tool } from "../tools/cache.ts";
import { type CpuAccount, openCpuAccount } from "./cpu.ts";
import { removePod } from "./pod.ts";
import { bundledRuntime } from "./program.ts";

/** An engine under measurement: its CRI and the processes that it costs. */
export type Engine = {
  name: "containerd" | "bulkhead";
  handler: string;
  cri: CriClient;
  /** Its daemon's process; another one after {@link Engine.restart}. */
  readonly pid: number;
  /** CPU of the engine, of all that it starts, and of its pods. */
  cpu: CpuAccount;
  socket: string;
  /** Ends the daemon as systemd would and starts it again; milliseconds from the start until it answers. */
  restart(): Promise<number>;
  /** True for a command line of a process that this engine runs for itself, not for a workload. */
  owns(argv: string[]): boolean;
  stop(): Promise<void>;
};

export type Machine = {
  /** Everything of this run, on disk. */
  dir: string;
  /** Their state, in memory. */
  stateDir: string;
  /** host:port of the registry, plain HTTP. */
  registry: string;
  cniConf: string;
};

const answers = async (name: string, cri: CriClient, child: ChildProcess, log: string): Promise<void> => {
  const end = Date.now() + 60_000;
  for (;;) {
    try {
      await cri.runtime.version(create(RuntimeService.method.version.input), AbortSignal.timeout(1000));
      return;
    } catch (error) {
      if (child.exitCode !== null || Date.now() > end)
        throw new Error(`Cannot start ${name}: see ${log}`, { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
};

const start = async (
  own: Pick<Engine, "name" | "handler" | "owns">,
  dir: string,
  argv: string[],
  socket: string,
): Promise<Engine> => {
  const logFile = join(dir, "log");
  const cpu = await openCpuAccount(`bh-bench-${own.name}`);
  let child: ChildProcess;
  const launch = (): void => {
    const log = openSync(logFile, "a");
    // Counted from its first instruction on.
    child = spawn("sh", ["-c", `echo $$ >${cpu.procs} && exec "$@"`, "sh", ...argv], {
      stdio: ["ignore", log, log],
    });
  };
  const end = async (): Promise<void> => {
    const ended = once(child, "exit");
    child.kill("SIGTERM");
    await ended;
  };
  const cri = connectCri(socket);
  launch();
  await answers(own.name, cri, child!, logFile);
  return {
    ...own,
    cri,
    cpu,
    socket,
    get pid() {
      return child.pid ?? 0;
    },
    async restart() {
      await end();
      const began = performance.now();
      launch();
      await answers(own.name, cri, child, logFile);
      return performance.now() - began;
    },
    async stop() {
      // A run that failed half-way must not leave its pods to the machine.
      const { items } = await cri.runtime.listPodSandbox(
        create(RuntimeService.method.listPodSandbox.input),
        AbortSignal.timeout(10_000),
      );
      for (const { id } of items) await removePod(cri, id);
      cri[Symbol.dispose]();
      await end();
      await cpu[Symbol.asyncDispose]();
    },
  };
};

/** containerd 2.4.2 as its documentation configures it for Kubernetes on cgroupfs. */
export async function startContainerd(machine: Machine): Promise<Engine> {
  const dir = join(machine.dir, "containerd");
  const socket = join(dir, "c.sock");
  await mkdir(join(dir, "certs.d", machine.registry), { recursive: true });
  await writeFile(
    join(dir, "certs.d", machine.registry, "hosts.toml"),
    `server = "http://${machine.registry}"\n[host."http://${machine.registry}"]\ncapabilities = ["pull", "resolve"]\n`,
  );
  await writeFile(
    join(dir, "config.toml"),
    `version = 3
root = "${dir}/root"
state = "${machine.stateDir}/containerd"
[grpc]
address = "${socket}"
[ttrpc]
address = "${dir}/t.sock"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["${tool("cni")}"]
conf_dir = "${machine.cniConf}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "${tool("containerd-shim-runc-v2")}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "${tool("runc")}"
SystemdCgroup = false
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "${machine.registry}/pause:3.10"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "${dir}/certs.d"
`,
  );
  return await start(
    {
      name: "containerd",
      handler: "runc",
      owns: (argv) =>
        (argv[0]?.endsWith("containerd-shim-runc-v2") && argv.includes(socket)) === true ||
        argv[0] === "/pause",
    },
    dir,
    [tool("containerd"), "--config", join(dir, "config.toml")],
    socket,
  );
}

/** Our runtime as it comes, owning everything. */
export async function startBulkhead(machine: Machine): Promise<Engine> {
  const dir = join(machine.dir, "bulkhead");
  await mkdir(dir, { recursive: true });
  const socket = join(dir, "cri.sock");
  await writeFile(
    join(dir, "config.yaml"),
    JSON.stringify({
      socket,
      root: `${dir}/root`,
      state: `${machine.stateDir}/bulkhead`,
      handlersDir: `${dir}/handlers.d`,
      cni: { binDirs: [tool("cni")], confDir: machine.cniConf },
      registries: { mirrors: { [machine.registry]: [`http://${machine.registry}`] } },
      runtimes: [{ kind: "oci", name: "runc", binary: tool("runc") }],
      defaultHandler: "runc",
    }),
  );
  const node = inCache(`node/node_modules/node-linux-${process.arch}/bin/node`);
  const main = await bundledRuntime(join(dir, "program"));
  return await start(
    {
      name: "bulkhead",
      handler: "runc",
      owns: (argv) => argv.some((each) => each.startsWith(dir) || each.startsWith(machine.stateDir)),
    },
    dir,
    [node, main, "serve", "--config", join(dir, "config.yaml")],
    socket,
  );
}
