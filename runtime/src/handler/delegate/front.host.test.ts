import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { create, type DescService } from "@bufbuild/protobuf";
import { type CriClient, type CriServices, connectCri } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { front } from "./front.ts";

const bin = join(process.env.BULKHEAD_CACHE ?? join(homedir(), ".cache/bulkhead"), "bin");

/** A fake of our own side that has nothing: every answer is empty. The engine behind is a real one. */
const empty = (service: DescService) =>
  Object.fromEntries(
    service.methods.map((method) => [
      method.localName,
      method.methodKind === "unary" ? async () => create(method.output) : async function* () {},
    ]),
  );
const nothing = { runtime: empty(RuntimeService), image: empty(ImageService) } as unknown as CriServices;

type Kind = {
  name: string;
  /** Its configuration, with all its files below a directory and its CRI at c.sock there. */
  config(dir: string): string;
  argv(file: string): string[];
};
const containerd: Kind = {
  name: "containerd",
  config: (dir) =>
    `version = 3\nroot = "${dir}/root"\nstate = "${dir}/state"\n[grpc]\naddress = "${dir}/c.sock"\n[ttrpc]\naddress = "${dir}/t.sock"\n`,
  argv: (file) => [join(bin, "containerd"), "--config", file],
};
const crio: Kind = {
  name: "cri-o",
  config: (dir) => `[crio]
root = "${dir}/root"
runroot = "${dir}/run"
storage_driver = "overlay"
log_dir = "${dir}/log"
version_file = "${dir}/version"
version_file_persist = "${dir}/version-persist"
clean_shutdown_file = "${dir}/clean"
[crio.api]
listen = "${dir}/c.sock"
[crio.nri]
enable_nri = false
[crio.network]
network_dir = "${dir}/net.d"
plugin_dirs = ["${dir}/cni"]
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
conmon = "/usr/bin/conmon"
pinns_path = "${bin}/pinns"
namespaces_dir = "${dir}/ns"
container_exits_dir = "${dir}/exits"
container_attach_socket_dir = "${dir}/attach"
[crio.runtime.runtimes.runc]
runtime_path = "${bin}/runc"
runtime_root = "${dir}/runc"
`,
  argv: (file) => [join(bin, "crio"), "--config", file, "--config-dir", `${file}.d`],
};
const there = existsSync(crio.argv("")[0] ?? "");
const kinds = there ? [containerd, crio] : [containerd];
if (!there) test.skip("in front of cri-o (skipped: ./dev tools makes CRI-O)");

describe.each(kinds)("in front of $name", ({ name, config, argv }) => {
  let dir: string;
  let daemon: ChildProcess;
  let engine: CriClient;
  let fronted: CriServices;
  const signal = AbortSignal.timeout(120_000);
  const r = RuntimeService.method;

  async function start(): Promise<void> {
    const [program = "", ...args] = argv(join(dir, "config.toml"));
    daemon = spawn(program, args, { stdio: "ignore" });
    await vi.waitFor(() => engine.runtime.version(create(r.version.input), AbortSignal.timeout(5000)), {
      timeout: 30_000,
      interval: 200,
    });
  }

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "bh-front-"));
    await writeFile(join(dir, "config.toml"), config(dir));
    for (const each of ["config.toml.d", "net.d", "cni"]) await mkdir(join(dir, each));
    engine = connectCri(join(dir, "c.sock"));
    fronted = front(nothing, engine, {
      hasHandler: (name) => name === "standard",
      hasPod: (id) => id === "ours",
      hasContainer: (id) => id === "ours",
      hasPodUid: () => false,
      sameDisk: () => true,
      stateDir: join(dir, "front"),
      log: { warn: () => {} },
    });
    await start();
  });

  afterAll(async () => {
    engine[Symbol.dispose]();
    daemon.kill("SIGTERM");
    await once(daemon, "exit");
    await rm(dir, { recursive: true, force: true });
  });

  test("Version and Status show the engine behind, with its handlers", async () => {
    const { runtimeVersion } = await fronted.runtime.version(create(r.version.input), signal);
    expect(runtimeVersion).toContain(name);
    const { runtimeHandlers } = await fronted.runtime.status(create(r.status.input), signal);
    expect(runtimeHandlers.map(({ name }) => name)).toContain("runc");
  });

  test("An id that is not ours is the engine's, with the engine's answer and code", async () => {
    await expect(
      fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
    ).rejects.toMatchObject({ code: "not-found" });
    await fronted.runtime.podSandboxStatus(
      create(r.podSandboxStatus.input, { podSandboxId: "ours" }),
      signal,
    );
  });

  test("While the engine is down its lists stand as last known, its calls fail and say why, ours go on", async () => {
    await fronted.runtime.listPodSandbox(create(r.listPodSandbox.input), signal);
    daemon.kill("SIGKILL");
    await once(daemon, "exit");
    const { runtimeHandlers } = await fronted.runtime.status(create(r.status.input), signal);
    expect(runtimeHandlers.map(({ name }) => name)).toContain("runc");
    await fronted.runtime.listPodSandbox(create(r.listPodSandbox.input), signal);
    await expect(
      fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
    ).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining(`engine at ${dir}/c.sock`),
    });
    await fronted.runtime.podSandboxStatus(
      create(r.podSandboxStatus.input, { podSandboxId: "ours" }),
      signal,
    );

    await start();
    await expect(
      fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
    ).rejects.toMatchObject({ code: "not-found" });
  });
});
