import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createGpuCheck } from "../../node-agent/src/installer/gpu.ts";
import type { Gvisor } from "../../node-agent/src/installer/gvisor.ts";
import { execute } from "../../node-agent/src/installer/host.ts";
import { sandboxMetrics } from "../../runtime/src/sandbox-metrics.ts";
import { removeCgroups } from "../cluster/mounts.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { outcome, run } from "../tools/run.ts";
import { createDaemon, type Daemon } from "./daemon.ts";
import { gvisorHandler } from "./handlers.ts";

/** What a profile of gVisor says, seen from a pod and from the node: each setting by what it does. */

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const kubeletPods = "/var/lib/kubelet/pods";
const cgroups = `bh-gvisor-${process.pid}`;

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let serial = 0;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-gvisor-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 88 });
  await daemon.start();
  await daemon.crictl("pull", busybox);
});
afterAll(async () => {
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await removeCgroups(cgroups);
  await rm(scratch, { recursive: true, force: true });
});

const file = async (name: string, content: object): Promise<string> => {
  const path = join(scratch, name);
  await writeFile(path, JSON.stringify(content));
  return path;
};

/** A handler of this profile; the daemon takes it up by itself. */
const serve = async (name: string, profile: Partial<Gvisor>): Promise<string> => {
  const config = await gvisorHandler(scratch, join(dirname(daemon.state), "runsc"), { name, ...profile });
  await writeFile(join(daemon.handlersDir, `${name}.yaml`), JSON.stringify(config));
  await expect
    .poll(
      async () => (JSON.parse(await daemon.crictl("info")) as Info).runtimeHandlers.map((each) => each.name),
      { timeout: 20_000 },
    )
    .toContain(name);
  return name;
};
type Info = { runtimeHandlers: { name: string }[] };

type PodOptions = { annotations?: Record<string, string>; linux?: object };
const podConfig = (name: string, { annotations = {}, linux = {} }: PodOptions): Promise<string> => {
  // As the kubelet names it: gVisor's shim takes the pod's uid from there.
  const metadata = { name, namespace: "test", uid: name, attempt: 0 };
  return file(`${name}.json`, {
    metadata,
    annotations,
    log_directory: join(scratch, `test_${name}_${name}`),
    linux,
  });
};

/** A pod, and what its containers say. */
class Pod implements AsyncDisposable {
  readonly name = `bh-gvisor-${process.pid}-${++serial}`;
  id = "";
  #config = "";
  async run(handler: string, options: PodOptions = {}): Promise<this> {
    this.#config = await podConfig(this.name, options);
    this.id = (await daemon.crictl("runp", "--runtime", handler, this.#config)).trim();
    return this;
  }
  async container(name = "main", more: object = {}, script = "exec sleep 1000"): Promise<string> {
    const config = await file(`${this.name}-${name}.json`, {
      metadata: { name, attempt: 0 },
      image: { image: busybox },
      command: ["sh", "-c", script],
      log_path: `${name}.log`,
      ...more,
    });
    const id = (await daemon.crictl("create", "--no-pull", this.id, config, this.#config)).trim();
    await daemon.crictl("start", id);
    return id;
  }
  async [Symbol.asyncDispose]() {
    if (this.id !== "") await daemon.crictl("rmp", "-f", this.id);
  }
}
const say = (container: string, script: string): Promise<string> =>
  daemon.crictl("exec", container, "sh", "-c", script);

/** The sandbox's process on the node: pid and command line. */
const sandboxOf = async (pod: Pod): Promise<{ pid: string; argv: string[] }> => {
  for (const pid of (await readdir("/proc")).filter((each) => /^\d+$/.test(each))) {
    const argv = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
    if (argv[0] === "runsc-sandbox" && argv.includes(pod.id)) return { pid, argv };
  }
  throw new Error(`Pod ${pod.id} has no sandbox`);
};
const rootfs = (container: string): string => join(daemon.state, "containers", container, "rootfs");

describe("the platform", () => {
  test.each(["systrap", "ptrace"] as const)("%s runs pods", async (platform) => {
    await using pod = await new Pod().run(await serve(`on-${platform}`, { platform }));
    expect(await say(await pod.container(), "uname -r; dmesg | head -1")).toMatch(/gvisor.*\n.*gVisor/i);
    expect((await sandboxOf(pod)).argv).toContain(`--platform=${platform}`);
  });
});

describe("what a container writes to its root file system", () => {
  const write = "echo kept > /written && cat /written && stat -c %s /written";
  test.each<[Partial<Gvisor>, { onNode: boolean; filestore: boolean }]>([
    [{ overlay: "none" }, { onNode: true, filestore: false }],
    [{ overlay: "memory" }, { onNode: false, filestore: false }],
    [{ overlay: "self" }, { onNode: false, filestore: true }],
    [{ overlay: "directory" }, { onNode: false, filestore: false }],
  ])("%j", async (profile, { onNode, filestore }) => {
    await using pod = await new Pod().run(await serve(`overlay-${profile.overlay}`, profile));
    const id = await pod.container();
    expect(await say(id, write)).toBe("kept\n5\n");
    const names = await readdir(rootfs(id));
    expect(names.includes("written")).toBe(onNode);
    expect(names.some((name) => name.startsWith(".gvisor.filestore"))).toBe(filestore);
    const { pid } = await sandboxOf(pod);
    const open = await Promise.all(
      (await readdir(`/proc/${pid}/fd`)).map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")),
    );
    expect(open.some((path) => path.startsWith(join(scratch, "overlays")))).toBe(
      profile.overlay === "directory",
    );
  });

  test("is no more than overlaySize", async () => {
    await using pod = await new Pod().run(await serve("overlay-small", { overlaySize: "8Mi" }));
    const id = await pod.container();
    expect(await say(id, "dd if=/dev/zero of=/big bs=1M count=16 2>&1 | head -1")).toMatch(/No space left/);
  });

  test("overlayScope: all keeps writes to volumes from the node too", async () => {
    const volume = join(scratch, "volume");
    await mkdir(volume, { recursive: true });
    const mounts = { mounts: [{ container_path: "/v", host_path: volume }] };
    for (const [overlayScope, seen] of [
      ["root", true],
      ["all", false],
    ] as const) {
      await using pod = await new Pod().run(await serve(`scope-${overlayScope}`, { overlayScope }));
      await say(await pod.container("main", mounts), `echo x > /v/${overlayScope} && cat /v/${overlayScope}`);
      expect(existsSync(join(volume, overlayScope))).toBe(seen);
    }
  });
});

describe("the network", () => {
  test("none is loopback alone", async () => {
    await using pod = await new Pod().run(await serve("net-none", { network: "none" }));
    expect(await say(await pod.container(), "grep : /proc/net/dev | cut -d: -f1")).toBe("    lo\n");
  });

  test("host is the node's for a pod on the node's network, and a pod's own for any other", async () => {
    const handler = await serve("net-host", { network: "host" });
    await using pod = await new Pod().run(handler, {
      linux: { security_context: { namespace_options: { network: 2 } } },
    });
    const inside = (await say(await pod.container(), "ls /sys/class/net; cat /proc/net/dev")).split("\n");
    const bridge = "bhcri88";
    expect(inside.some((line) => line.includes(bridge))).toBe(true);
    await using own = await new Pod().run(handler);
    expect(await say(await own.container(), "cat /proc/net/dev")).not.toContain(bridge);
  });

  test("sandbox refuses a pod on the node's network", async () => {
    await expect(
      new Pod().run("gvisor", { linux: { security_context: { namespace_options: { network: 2 } } } }),
    ).rejects.toThrow(/Cannot run the pod on the node's network/);
  });
});

describe("an annotation of a pod", () => {
  const flag = (name: string, value: string) => ({ annotations: { [`dev.gvisor.flag.${name}`]: value } });

  test("that the profile does not name is refused", async () => {
    for (const [name, value] of [
      ["network", "host"],
      ["overlay2", "none"],
      ["host-uds", "all"],
    ] as const)
      await expect(new Pod().run("gvisor", flag(name, value))).rejects.toThrow(
        new RegExp(
          `dev.gvisor.flag.${name}.*the profile of handler .* does not let a pod set it.*allowed: none`,
        ),
      );
    expect(await daemon.crictl("pods", "-q", "--label", "x=y")).toBe("");
  });

  test("that it names is the sandbox's flag, and its value is still checked", async () => {
    const handler = await serve("tenants", { tenant: { flags: ["overlay2", "host-uds"] } });
    await using pod = await new Pod().run(handler, flag("overlay2", "root:self"));
    expect((await sandboxOf(pod)).argv).toContain("--overlay2=root:self");
    await expect(new Pod().run(handler, flag("overlay2", `root:dir=${scratch}`))).rejects.toThrow(
      /overlay medium/,
    );
    await expect(new Pod().run(handler, flag("network", "host"))).rejects.toThrow(
      /allowed: dev.gvisor.flag.overlay2/,
    );
  });
});

describe("GPUs", () => {
  const driverVersion = "580.126.20";
  const handlerOf = (name: string) => serve(name, { nvproxy: { driverVersion } });

  test("settings reach the sandbox, and an ordinary pod of the profile needs no GPU", async () => {
    const nvproxy = { driverVersion, capabilities: ["compute" as const, "video" as const] };
    await using pod = await new Pod().run(await serve("gpu", { nvproxy }));
    expect((await sandboxOf(pod)).argv).toEqual(
      expect.arrayContaining([
        "--nvproxy=true",
        `--nvproxy-driver-version=${driverVersion}`,
        "--nvproxy-allowed-driver-capabilities=compute,video",
      ]),
    );
    expect(await say(await pod.container(), "uname -r; ls -d /dev/nvidia* 2>&1; true")).toMatch(
      /gvisor.*\n.*No such/,
    );
  });

  test("that cannot be had here are told by the agent before a sandbox ends of it", async () => {
    const ask = (nvproxy: Gvisor["nvproxy"], node = scratch, runsc = tool("runsc")) =>
      createGpuCheck({ at: (path) => join(node, path), run: execute })(
        runsc,
        { nvproxy },
        AbortSignal.timeout(60_000),
      );
    expect(await ask(undefined)).toBeUndefined();
    expect(await ask({ driverVersion })).toBeUndefined();
    expect(await ask({ driverVersion: "latest" })).toBeUndefined();
    expect(await ask({ driverVersion: "1.2.3" })).toMatch(
      `gVisor does not speak to NVIDIA's driver 1.2.3, but to `,
    );
    expect(await ask({})).toContain("no NVIDIA driver is loaded on this node");
    // A program that is not in place keeps nothing else of the node from being served: it comes, and a canary tells.
    for (const missing of ["/bin/false", join(scratch, "no-runsc")])
      expect(await ask({ driverVersion }, scratch, missing)).toBeUndefined();
    // As the kernel's module says it.
    await mkdir(join(scratch, "sys/module/nvidia"), { recursive: true });
    await writeFile(join(scratch, "sys/module/nvidia/version"), `${driverVersion}\n`);
    expect(await ask({})).toBeUndefined();
  });

  describe("of NVIDIA's CDI files", () => {
    const nodes = [
      { path: "/dev/nvidiactl", major: 195, minor: 255 },
      { path: "/dev/nvidia0", major: 195, minor: 0 },
      // The kernel gives its number when the driver is loaded; the sandbox has another.
      { path: "/dev/nvidia-uvm", major: 511, minor: 0 },
    ];
    const cdiFile = "/var/run/cdi/bulkhead-test-nvidia.json";
    const made: string[] = [];
    beforeAll(async () => {
      for (const { path, major, minor } of nodes) {
        if (existsSync(path)) continue;
        await run(["mknod", "-m", "666", path, "c", `${major}`, `${minor}`]);
        made.push(path);
      }
      const library = join(scratch, "libcuda.so");
      await writeFile(library, "the driver's\n");
      // As NVIDIA's own hook finds the container's files: by the bundle, which the state names that it reads.
      const hook = join(scratch, "nvidia-cdi-hook");
      const program = `#!${process.execPath}
        const { readFileSync, symlinkSync } = require("node:fs");
        const { bundle } = JSON.parse(readFileSync(0, "utf8"));
        const { root } = JSON.parse(readFileSync(bundle + "/config.json", "utf8"));
        symlinkSync("libcuda.so.1", require("node:path").resolve(bundle, root.path, "lib/libcuda.so"));`;
      await writeFile(hook, program, { mode: 0o755 });
      await mkdir(dirname(cdiFile), { recursive: true });
      await writeFile(
        cdiFile,
        JSON.stringify({
          cdiVersion: "0.6.0",
          kind: "nvidia.com/gpu",
          devices: [{ name: "bulkhead-test", containerEdits: { deviceNodes: nodes } }],
          containerEdits: {
            env: ["NVIDIA_VISIBLE_DEVICES=void"],
            mounts: [{ hostPath: library, containerPath: "/lib/libcuda.so.1", options: ["ro", "bind"] }],
            hooks: [
              { hookName: "createContainer", path: hook, args: ["nvidia-cdi-hook", "create-symlinks"] },
            ],
          },
        }),
      );
    });
    afterAll(async () => {
      await rm(cdiFile, { force: true });
      for (const path of made) await rm(path);
    });
    const gpu = { CDI_devices: [{ name: "nvidia.com/gpu=bulkhead-test" }] };
    const list = "cd /dev; for f in nvidia*; do stat -c '%n %t:%T' $f; done";

    test("come with their nodes, libraries and what their hooks make, and lead to the node's driver", async () => {
      await using pod = await new Pod().run(await handlerOf("gpu-cdi"));
      const id = await pod.container("main", gpu);
      expect(await say(id, `${list}; cat /lib/libcuda.so; echo $NVIDIA_VISIBLE_DEVICES`)).toMatch(
        /^nvidia-uvm [0-9a-f]+:0\nnvidia0 c3:0\nnvidiactl c3:ff\nthe driver's\nvoid\n$/,
      );
      // gVisor opens the node's own, behind which no driver is.
      if (made.length === nodes.length)
        expect(await say(id, "head -c1 /dev/nvidiactl 2>&1; true")).toContain("No such device or address");
      // Another container of the pod has none of them.
      expect(await say(await pod.container("beside"), "ls -d /dev/nvidia* 2>&1; true")).toContain("No such");
    });

    test("are refused without nvproxy, and not shown to who gets all devices: gVisor's kernel would end", async () => {
      await using pod = await new Pod().run("gvisor");
      await expect(pod.container("main", gpu)).rejects.toThrow(
        /Cannot give the container ."\/dev\/nvidia.*handler ."gvisor." is gVisor that does not speak to NVIDIA's driver/,
      );
      await expect(
        pod.container("main", {
          devices: [{ host_path: "/dev/nvidiactl", container_path: "/dev/nvidiactl" }],
        }),
      ).rejects.toThrow(/handler.gvisor.nvproxy/);
      const privileged = { linux: { security_context: { privileged: true } } };
      await using other = await new Pod().run("gvisor", privileged);
      const id = await other.container("main", privileged);
      expect(await say(id, "ls -d /dev/nvidia* 2>&1; true")).toContain("No such");
    });
  });
});

describe("an emptyDir that the sandbox keeps", () => {
  const mount = (uid: string, name: string) => ({
    container_path: `/${name}`,
    host_path: join(kubeletPods, uid, "volumes/kubernetes.io~empty-dir", name),
  });
  /** A pod's volumes as the kubelet makes them before it runs the sandbox. */
  const withVolumes = async (use: (pod: Pod, directory: string) => Promise<void>): Promise<void> => {
    const handler = await serve("empty-dirs", { emptyDir: "sandbox" });
    const pod = new Pod();
    const directory = join(kubeletPods, pod.name, "volumes/kubernetes.io~empty-dir");
    for (const name of ["disk", "memory", "used"]) await mkdir(join(directory, name), { recursive: true });
    await writeFile(join(directory, "used/before"), "before\n");
    await outcome(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", join(directory, "memory")]);
    try {
      await pod.run(handler);
      await use(pod, directory);
    } finally {
      await pod[Symbol.asyncDispose]();
      await outcome(["umount", join(directory, "memory")]);
      await rm(join(kubeletPods, pod.name), { recursive: true });
    }
  };

  test("is one for all containers of the pod, and the node sees no file of it", async () => {
    await withVolumes(async (pod, directory) => {
      const mounts = { mounts: ["disk", "memory", "used"].map((name) => mount(pod.name, name)) };
      const one = await pod.container("one", mounts);
      const two = await pod.container("two", mounts);
      await say(one, "echo d > /disk/f; echo m > /memory/f; echo u > /used/f");
      expect(await say(two, "cat /disk/f /memory/f /used/f /used/before")).toBe("d\nm\nu\nbefore\n");
      expect(await say(two, "grep -E ' /(disk|memory) ' /proc/mounts | cut -d' ' -f3 | sort -u")).toBe(
        "tmpfs\n",
      );
      const onNode = await Promise.all(
        ["disk", "memory", "used"].map((name) => readdir(join(directory, name))),
      );
      expect(onNode[0]?.filter((name) => !name.startsWith(".gvisor.filestore"))).toEqual([]);
      expect(onNode[1]).toEqual([]);
      // One that had content before the sandbox stays the node's.
      expect(onNode[2]?.sort()).toEqual(["before", "f"]);
    });
  });

  test("cannot be mounted in part", async () => {
    await withVolumes(async (pod) => {
      const part = join(kubeletPods, pod.name, "volume-subpaths/disk/main/0");
      await mkdir(part, { recursive: true });
      await expect(
        pod.container("main", { mounts: [{ container_path: "/part", host_path: part }] }),
      ).rejects.toThrow(/Cannot mount a subPath of emptyDir/);
    });
  });
});

test("gVisor's own metrics are the pod's", async () => {
  await using pod = await new Pod().run("gvisor");
  await say(await pod.container(), "cat /etc/passwd > /dev/null");
  const labels = { handler: "gvisor", namespace: "test", pod: pod.name };
  const text = await sandboxMetrics([
    { id: pod.id, root: join(dirname(daemon.state), "runsc"), ...labels },
    { id: "gone", root: join(dirname(daemon.state), "runsc"), ...labels, pod: "gone" },
  ]);
  const opens = new RegExp(
    `^runsc_fs_opens\\{handler="gvisor",namespace="test",pod="${pod.name}"\\} (\\d+)$`,
    "m",
  );
  expect(Number(opens.exec(text)?.[1])).toBeGreaterThan(3);
  expect(text).toMatch(/^bulkhead_runtime_gvisor_silent_pods 1$/m);
});

test("each container has figures of its own, and the pod's are of the sandbox in its cgroup", async () => {
  const parent = `/${cgroups}/figures`;
  await using pod = await new Pod().run("gvisor", { linux: { cgroup_parent: parent } });
  // Its buffer is its memory.
  const hungry = "exec dd if=/dev/zero of=/dev/null bs=40M";
  const busy = await pod.container("busy", {}, hungry);
  const idle = await pod.container("idle");
  const stats = async (id: string): Promise<{ cpu: number; memory: number }> => {
    const { stats } = JSON.parse(await daemon.crictl("stats", "-o", "json", "--id", id)) as Stats;
    const [{ cpu, memory }] = stats;
    return { cpu: Number(cpu.usageCoreNanoSeconds.value), memory: Number(memory.workingSetBytes.value) };
  };
  await expect.poll(async () => (await stats(busy)).memory, { timeout: 20_000 }).toBeGreaterThan(30_000_000);
  const [of, other] = [await stats(busy), await stats(idle)];
  expect(other.memory).toBeLessThan(10_000_000);
  expect(of.cpu).toBeGreaterThan(other.cpu * 2);
  const { pid } = await sandboxOf(pod);
  expect(await readFile(`/proc/${pid}/cgroup`, "utf8")).toContain(`${parent}/`);
});
type Stats = {
  stats: [
    { cpu: { usageCoreNanoSeconds: { value: string } }; memory: { workingSetBytes: { value: string } } },
  ];
};

describe("What gVisor does otherwise than its pod asks", () => {
  const node = 2;
  const target = 3;

  test("hostPID and hostIPC: the pod starts, and sees neither the node's processes nor its shared memory", async () => {
    const shared = `/dev/shm/bh-gvisor-${process.pid}`;
    await writeFile(shared, "the node's");
    try {
      const options = { pid: node, ipc: node };
      await using pod = await new Pod().run("gvisor", {
        linux: { security_context: { namespace_options: options } },
      });
      const id = await pod.container("main", {
        linux: { security_context: { namespace_options: options } },
      });
      const seen = await say(id, `ps -o pid,args; ls /dev/shm; cat ${shared} 2>&1 || true`);
      expect(seen).toMatch(/^ *1 .*holder/m);
      expect(seen).not.toContain("vitest");
      expect(seen).not.toContain("the node's");
    } finally {
      await rm(shared);
    }
  });

  test("a container that joins another's processes is refused in words", async () => {
    await using pod = await new Pod().run("gvisor");
    const id = await pod.container();
    const joins = { linux: { security_context: { namespace_options: { pid: target, target_id: id } } } };
    await expect(pod.container("debugger", joins)).rejects.toThrow(/Cannot join another container/);
  });

  test("a container with a limit beside one without ends alone when it is over it", async () => {
    await using pod = await new Pod().run("gvisor", { linux: { cgroup_parent: `/${cgroups}` } });
    const beside = await pod.container("beside");
    const limit = { linux: { resources: { memory_limit_in_bytes: 64 << 20 } } };
    const fills = await pod.container("fills", limit, "exec tail /dev/zero");
    await expect
      .poll(
        async () =>
          (JSON.parse(await daemon.crictl("inspect", fills)) as { status: { reason: string } }).status.reason,
        { timeout: 60_000 },
      )
      .toBe("OOMKilled");
    expect(await say(beside, "echo on")).toBe("on\n");
  });
});
