import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { firecrackerHandler, kataHandler, vmSettings } from "@bulkhead/lib/api/kata.ts";
import { type CriClient, connectCri } from "@bulkhead/lib/cri/client.ts";
import { ContainerState, NamespaceMode, PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { mountedHost } from "@bulkhead/node-agent/installer/host.ts";
import { revisionParameter } from "@bulkhead/node-agent/installer/kata/configuration.ts";
import { vmFacts } from "@bulkhead/node-agent/installer/kata/facts.ts";
import { noVm, type VmFacts } from "@bulkhead/node-agent/installer/kata/node.ts";
import { vmFiles } from "@bulkhead/node-agent/installer/kata/profile.ts";
import { runCanary } from "@bulkhead/node-agent/probe/canary.ts";
import { judge, parseView, viewCommand } from "@bulkhead/node-agent/probe/wall.ts";
import { collectMetrics, monitorSocket } from "@bulkhead/runtime/handler/shim/guest-metrics.ts";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createDaemon, type Daemon, remains } from "../cri/daemon.ts";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";

/**
 * A real Kata, wherever one is installed as its static release lays it out (KATA_ROOT, default /opt/kata) and boots a
 * guest: pods of its own through the CRI, from boot to remains. Deadlines are those of a node that is emulated itself,
 * where a boot takes a minute and the daemon's own start as long; with KVM all of it takes seconds. Nothing of it runs
 * without an installation, and says why.
 */

const root = process.env.KATA_ROOT ?? "/opt/kata";
const images = ["e2e-test-images/busybox:1.29-2", "canary:1"];
const image = { image: "registry.k8s.io/e2e-test-images/busybox:1.29-2" };
const revision = "00c0ffee00";
const call = (seconds = 1500) => AbortSignal.timeout(seconds * 1000);
const minutes = 60_000;

const deadlines = { boot: 480, createContainer: 600, stop: 120 };
const shim = existsSync(join(root, "runtime-rs/bin/containerd-shim-kata-v2")) ? "rust" : "go";
const initrd = "kata-containers-initrd.img";
// What an emulated processor is spared; it matters to no assertion.
const kernelParameters = ["mitigations=off", "nokaslr"];

const guest = {
  ...{ shim, memory: "256Mi", kernelParameters, deadlines },
  ...(existsSync(join(root, "share/kata-containers", initrd)) ? { initrd } : {}),
};
const block = { rootfs: "block", diskSize: "128Mi" };
const walls = {
  qemu: { kata: kataHandler.parse(guest) },
  "qemu-block": { kata: kataHandler.parse({ ...guest, ...block }) },
  "cloud-hypervisor": { kata: kataHandler.parse({ ...guest, hypervisor: "cloud-hypervisor" }) },
  "cloud-hypervisor-block": {
    kata: kataHandler.parse({ ...guest, ...block, hypervisor: "cloud-hypervisor" }),
  },
  // A part of the Rust shim alone.
  dragonball: { kata: kataHandler.parse({ ...guest, shim: "rust", hypervisor: "dragonball" }) },
  "dragonball-block": {
    kata: kataHandler.parse({ ...guest, ...block, shim: "rust", hypervisor: "dragonball" }),
  },
  firecracker: {
    firecracker: firecrackerHandler.parse({ shim, memory: "256Mi", diskSize: "128Mi", deadlines }),
  },
} as const;

/** What the agent finds of the node; undefined where nothing is installed. */
const lookAround = async (): Promise<VmFacts | undefined> => {
  if (!existsSync(root)) return undefined;
  const source = join(import.meta.dirname, "../../node-agent/src/installer/kata/kvm-probe.c");
  const dir = await mkdtemp(join(tmpdir(), "bh-kata-probe-"));
  const probe = join(dir, "probe");
  execFileSync("cc", ["-Os", "-static", "-o", probe, source]);
  const found = await vmFacts(mountedHost("/", "busybox"), probe);
  await rm(dir, { recursive: true });
  return found;
};
// Why a wall cannot be had must be known before there are tests.
const facts = await lookAround();
const reasons = (wall: keyof typeof walls, seen: VmFacts): string | undefined =>
  noVm({ handler: walls[wall], artifact: { bundled: true } }, root, seen);
/** Without its files there is nothing to try. */
const whyNot = (wall: keyof typeof walls): string | undefined =>
  facts === undefined
    ? `no Kata is installed at ${root} (KATA_ROOT)`
    : reasons(wall, { ...facts, kvm: { runs: true, why: "" }, vhostVsock: true, missingControllers: [] });

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let cri: CriClient;
const servesMetrics = new Set<string>();
const usable = (Object.keys(walls) as (keyof typeof walls)[]).filter((wall) => whyNot(wall) === undefined);

beforeAll(async () => {
  if (usable.length === 0 || facts === undefined) return;
  scratch = await mkdtemp(join(tmpdir(), "bh-kata-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, images);
  daemon = await createDaemon({ registry: registry.host, subnet: 97, seconds: 900 });
  for (const wall of usable) {
    const { configuration, handler } = vmFiles({ name: wall, revision, handler: walls[wall] }, root, facts);
    // Not where the agent would: this node may have one.
    const configPath = join(scratch, `${wall}.toml`);
    await writeFile(configPath, configuration.text);
    if (handler.kind === "shim" && handler.kata?.metrics) servesMetrics.add(wall);
    await writeFile(join(daemon.handlersDir, `${wall}.yaml`), JSON.stringify({ ...handler, configPath }));
  }
  await daemon.start();
  cri = connectCri(daemon.socket);
  await cri.image.pullImage({ image }, call());
}, 40 * minutes);
afterAll(async () => {
  cri?.[Symbol.dispose]();
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  if (scratch) await rm(scratch, { recursive: true, force: true });
}, 40 * minutes);

/** The daemon's own words are what a failure is found by. */
const logTail = async (): Promise<string> => (await readFile(daemon.logFile, "utf8")).slice(-6000);

describe.each(Object.keys(walls) as (keyof typeof walls)[])("Kata with %s", (wall) => {
  const why = whyNot(wall);
  if (why !== undefined) {
    console.log(`skipped: Kata with ${wall}: ${why}`);
    test.skip(`(skipped: ${why})`, () => {});
    return;
  }
  const shared = vmSettings(walls[wall])?.rootfs === "virtio-fs";
  const [shell = "", ...script] = viewCommand;
  const hostView = parseView(execFileSync(shell, script, { encoding: "utf8" }));
  const mebibyte = 1 << 20;
  /** Why no guest boots, where the node cannot be expected to boot one. */
  let cannot: string | undefined;
  let pod: string;
  let main: string;
  let volume: string;
  const sandbox = (attempt = 0) => ({
    metadata: { name: wall, namespace: "kata", uid: `uid-${wall}`, attempt },
    hostname: "guest",
    logDirectory: join(scratch, "logs", wall),
    // No CPU limit: a second virtual processor under emulation is slow, and some kernels trip over it.
    linux: { resources: { memoryLimitInBytes: BigInt(256 * mebibyte) } },
  });
  const create = async (name: string, script: string, more: object = {}): Promise<string> => {
    const { containerId } = await cri.runtime.createContainer(
      {
        podSandboxId: pod,
        sandboxConfig: sandbox(),
        config: {
          metadata: { name, attempt: 0 },
          image,
          command: ["sh", "-c", script],
          logPath: `${name}.log`,
          linux: { securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } } },
          ...more,
        },
      },
      call(),
    );
    return containerId;
  };
  const run = async (name: string, script: string, more: object = {}): Promise<string> => {
    const containerId = await create(name, script, more);
    await cri.runtime.startContainer({ containerId }, call());
    return containerId;
  };
  const exec = async (script: string, containerId = main) => {
    const cmd = ["sh", "-c", script];
    const answer = await cri.runtime.execSync({ containerId, cmd, timeout: 300n }, call());
    return {
      stdout: Buffer.from(answer.stdout).toString(),
      stderr: Buffer.from(answer.stderr).toString(),
      exitCode: answer.exitCode,
    };
  };
  const logOf = (name: string): Promise<string> =>
    readFile(join(scratch, "logs", wall, `${name}.log`), "utf8").catch(() => "");
  const until = async <T>(what: string, seconds: number, look: () => Promise<T | undefined>): Promise<T> => {
    for (const deadline = Date.now() + seconds * 1000; ; await sleep(500)) {
      const found = await look();
      if (found !== undefined) return found;
      if (Date.now() > deadline) throw new Error(`Not in time: ${what}\n${await logTail()}`);
    }
  };
  const ended = (containerId: string, seconds = 900) =>
    until(`end of ${containerId}`, seconds, async () => {
      const { status } = await cri.runtime.containerStatus({ containerId }, call(60));
      return status?.state === ContainerState.CONTAINER_EXITED ? status : undefined;
    });
  /** Until shim, hypervisor and virtiofsd have ended. */
  const gone = (id: string) =>
    until("the end of the guest's processes", 300, async () =>
      (await processesNaming(id)).length === 0 ? true : undefined,
    ).catch(async () => expect(await processesNaming(id)).toEqual([]));
  /** Of a pod that was removed: Bulkhead's own, Kata's own, and the kernel's. */
  const nothingLeft = async (id: string) => {
    expect(await remains(daemon)).toEqual([]);
    await gone(id);
    expect(ownDirectories.map((each) => join(each, id)).filter(existsSync)).toEqual([]);
    expect(
      (await readFile("/proc/self/mountinfo", "utf8")).split("\n").filter((line) => line.includes(id)),
    ).toEqual([]);
    const cgroups = await readdir("/sys/fs/cgroup", { recursive: true });
    expect(cgroups.filter((path) => basename(path).includes(id))).toEqual([]);
  };
  const podIp = async (): Promise<string> =>
    (await cri.runtime.podSandboxStatus({ podSandboxId: pod }, call(60))).status?.network?.ip ?? "";

  beforeAll(async () => {
    await mkdir(join(scratch, "logs", wall), { recursive: true });
    volume = join(scratch, `volume-${wall}`);
    await mkdir(volume);
    await writeFile(join(volume, "from-node"), "seen\n");
    const began = performance.now();
    try {
      pod = (await cri.runtime.runPodSandbox({ config: sandbox(), runtimeHandler: wall }, call()))
        .podSandboxId;
      main = await run(
        "main",
        "echo to-stdout; echo to-stderr >&2; echo $$ >/tmp/pid; while :; do echo pong | nc -l -p 8080; done",
        { mounts: [{ hostPath: volume, containerPath: "/volume", readonly: false }] },
      );
    } catch (error) {
      // An installation may boot guests without what an ordinary one wants of a node, so it was tried.
      const doubt = facts && reasons(wall, facts);
      if (doubt === undefined) throw new Error(`Cannot start a pod\n${await logTail()}`, { cause: error });
      cannot = `${doubt}; a pod was tried: ${messageOf(error)}`;
      console.log(`skipped: Kata with ${wall}: ${cannot}`);
      return;
    }
    console.log(
      `Kata with ${wall}: pod and container in ${Math.round((performance.now() - began) / 1000)} s`,
    );
  }, 30 * minutes);
  beforeEach(({ skip }) => {
    if (cannot !== undefined) skip(cannot);
  });

  test(
    "runs in a guest of its own kernel and boot, booted by this very configuration",
    async () => {
      const cmd = [shell, ...script];
      const { stdout } = await cri.runtime.execSync({ containerId: main, cmd, timeout: 300n }, call());
      const view = parseView(Buffer.from(stdout).toString());
      const verdict = judge("vm", view, hostView, { parameter: revisionParameter(revision) });
      expect(verdict.broken).toEqual([]);
      expect(verdict.assertions).toEqual(
        expect.arrayContaining(["boot-differs", "boot-line-differs", "guest-is-of-this-revision"]),
      );
      // A guest that boots the very kernel of its node shows itself by those alone.
      if (view.version !== hostView.version) expect(verdict.assertions).toContain("kernel-differs");
    },
    15 * minutes,
  );

  // Of the others Kata cannot tell it, and Cloud Hypervisor does not take AMD's from its guests.
  test.runIf(wall.startsWith("qemu") || (wall.startsWith("cloud-hypervisor") && shim === "rust"))(
    "has a processor without virtualization",
    async () => {
      const flags = wall.startsWith("qemu") ? "vmx|svm" : "vmx";
      expect((await exec(`grep -cwE '${flags}' /proc/cpuinfo`)).stdout).toBe("0\n");
    },
    15 * minutes,
  );

  test(
    "has the pod's hostname, network and address, reaches its gateway and is reached from the node",
    async () => {
      const ip = await podIp();
      expect(ip).toMatch(/^10\.97\./);
      expect((await exec("hostname")).stdout.trim()).toBe("guest");
      expect((await exec("ip -4 addr show eth0")).stdout).toContain(`inet ${ip}/`);
      expect(await exec("ping -c 1 -W 30 10.97.0.1")).toMatchObject({ exitCode: 0 });
      const pong = await until("an answer of the pod's server", 300, async () => await said(ip, 8080));
      expect(pong).toBe("pong\n");
    },
    15 * minutes,
  );

  test(
    "sees its volume",
    async () => {
      expect((await exec("cat /volume/from-node")).stdout).toBe("seen\n");
      await exec("echo written >/volume/from-guest");
      // A guest that shares nothing has a copy of the volume.
      if (shared) expect(await readFile(join(volume, "from-guest"), "utf8")).toBe("written\n");
    },
    15 * minutes,
  );

  test(
    "runs commands in the container: output, error output, exit code",
    async () => {
      expect(await exec("echo out; echo err >&2; exit 7")).toEqual({
        stdout: "out\n",
        stderr: "err\n",
        exitCode: 7,
      });
    },
    15 * minutes,
  );

  test(
    "writes both streams to the log",
    async () => {
      const text = await until("both lines of the log", 300, async () => {
        const log = await logOf("main");
        return log.includes("to-stderr") && log.includes("to-stdout") ? log : undefined;
      });
      expect(text).toMatch(/ stdout F to-stdout$/m);
      expect(text).toMatch(/ stderr F to-stderr$/m);
    },
    5 * minutes,
  );

  test(
    "forwards a port",
    async () => {
      let child: ChildProcess | undefined;
      try {
        child = spawn(
          tool("crictl"),
          [
            "--runtime-endpoint",
            `unix://${daemon.socket}`,
            "--timeout",
            "120s",
            "port-forward",
            pod,
            "18097:8080",
          ],
          { stdio: "ignore" },
        );
        const pong = await until(
          "an answer through the forwarded port",
          120,
          async () => await said("127.0.0.1", 18097),
        );
        expect(pong).toBe("pong\n");
      } finally {
        child?.kill("SIGTERM");
      }
    },
    10 * minutes,
  );

  test(
    "is as large as the pod's limits, and holds a container to its own",
    async () => {
      const total = /MemTotal:\s+([0-9]+) kB/.exec((await exec("cat /proc/meminfo")).stdout)?.[1];
      // The pod's 256 MiB and what Kata adds for the guest; less what the guest's kernel keeps.
      expect(Number(total)).toBeGreaterThan(128 * 1024);
      expect(Number(total)).toBeLessThan(640 * 1024);
      const hog = await run("hog", "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null; exit $?", {
        linux: {
          resources: { memoryLimitInBytes: BigInt(32 * mebibyte) },
          securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } },
        },
      });
      expect((await ended(hog)).exitCode).not.toBe(0);
      await cri.runtime.removeContainer({ containerId: hog }, call());
      // The neighbour went on.
      expect((await exec("echo here")).stdout).toBe("here\n");
    },
    20 * minutes,
  );

  test(
    "runs several containers in one guest, with one loopback",
    async () => {
      const second = await run("second", "cat /proc/sys/kernel/random/boot_id; nc 127.0.0.1 8080 </dev/null");
      expect((await ended(second)).exitCode).toBe(0);
      const boot = (await exec("cat /proc/sys/kernel/random/boot_id")).stdout.trim();
      const text = await logOf("second");
      expect(text).toContain(boot);
      expect(text).toContain("pong");
      await cri.runtime.removeContainer({ containerId: second }, call());
    },
    20 * minutes,
  );

  test(
    "starts a container again and again, whether or not the last ones were removed",
    async () => {
      const before: string[] = [];
      // Firecracker has drives for five, of which two are taken.
      for (let attempt = 0; attempt < 5; attempt++) {
        const again = await run("again", `echo attempt ${attempt} >>/attempts; cat /attempts`, {
          metadata: { name: "again", attempt },
          logPath: `again-${attempt}.log`,
        });
        expect((await ended(again)).exitCode).toBe(0);
        // Its root is its own.
        expect(await logOf(`again-${attempt}`)).toMatch(new RegExp(`^[^\n]* stdout F attempt ${attempt}\n$`));
        before.push(again);
        if (attempt === 0) await cri.runtime.removeContainer({ containerId: again }, call());
      }
      for (const containerId of before) await cri.runtime.removeContainer({ containerId }, call());
    },
    30 * minutes,
  );

  test.runIf(!shared)(
    "meets the end of its disk as ENOSPC, and the node's disk does not fill",
    async () => {
      const full = await exec("dd if=/dev/zero of=/big bs=1M count=200 2>&1; rm -f /big");
      expect(full.stdout).toContain("No space left on device");
      expect((await exec("echo small >/small && cat /small")).stdout).toBe("small\n");
    },
    15 * minutes,
  );

  test(
    "outlives a kill -9 of the daemon: the same guest, the same process, its exits known",
    async () => {
      const boot = (await exec("cat /proc/sys/kernel/random/boot_id")).stdout;
      const short = await run("short", "sleep 5; exit 9");
      cri[Symbol.dispose]();
      await daemon.end("SIGKILL");
      await sleep(10_000);
      await daemon.start();
      cri = connectCri(daemon.socket);
      expect((await exec("cat /proc/sys/kernel/random/boot_id")).stdout).toBe(boot);
      const { status } = await cri.runtime.containerStatus({ containerId: main }, call(60));
      expect(status?.state).toBe(ContainerState.CONTAINER_RUNNING);
      const { status: podStatus } = await cri.runtime.podSandboxStatus({ podSandboxId: pod }, call(60));
      expect(podStatus?.state).toBe(PodSandboxState.SANDBOX_READY);
      expect((await ended(short)).exitCode).toBe(9);
      await cri.runtime.removeContainer({ containerId: short }, call());
    },
    40 * minutes,
  );

  test(
    "tells what the container uses",
    async () => {
      const { stats } = await cri.runtime.containerStats({ containerId: main }, call());
      expect(Number(stats?.cpu?.usageCoreNanoSeconds?.value ?? 0)).toBeGreaterThan(0);
      expect(Number(stats?.memory?.workingSetBytes?.value ?? 0)).toBeGreaterThan(0);
    },
    5 * minutes,
  );

  test(
    "is asked for its metrics and lives on",
    async () => {
      const labels = { pod: wall, namespace: "kata", handler: wall };
      const socket = monitorSocket({ runtime: shim }, pod);
      expect(existsSync(socket)).toBe(true);
      // A shim that cannot say them ends itself when it is asked: its profile keeps the runtime from that.
      if (servesMetrics.has(wall)) {
        const text = await until(
          "metrics",
          120,
          async () => (await collectMetrics([{ labels, socket }])) || undefined,
        );
        expect(text).toContain(`kata_guest_load{pod="${wall}",namespace="kata",handler="${wall}"`);
        expect(text).toContain("kata_shim_");
      }
      expect((await exec("echo here")).stdout).toBe("here\n");
    },
    10 * minutes,
  );

  test(
    "stops and goes, and nothing of it stays",
    async () => {
      await cri.runtime.stopContainer({ containerId: main, timeout: 2n }, call());
      const { status } = await cri.runtime.containerStatus({ containerId: main }, call(60));
      expect(status?.state).toBe(ContainerState.CONTAINER_EXITED);
      expect([137, 143]).toContain(status?.exitCode);
      await cri.runtime.stopPodSandbox({ podSandboxId: pod }, call());
      await cri.runtime.removePodSandbox({ podSandboxId: pod }, call());
      await nothingLeft(pod);
    },
    20 * minutes,
  );

  test(
    "passes the agent's canary, a pod of its own after this one",
    async () => {
      const canary = await runCanary(cri, wall, call(), {
        logs: { node: join(scratch, "canary"), here: join(scratch, "canary") },
        deadlines: { exec: 300, remove: 300 },
      });
      const verdict = judge(
        "vm",
        canary.view,
        hostView,
        { parameter: revisionParameter(revision) },
        canary.outside,
      );
      expect(verdict.broken).toEqual([]);
      expect(verdict.assertions).toEqual(
        expect.arrayContaining(["boot-differs", "guest-is-of-this-revision", "hidden-from-host"]),
      );
      if (canary.view.version !== hostView.version) expect(verdict.assertions).toContain("kernel-differs");
      expect(canary.outside.overheadBytes).toBeGreaterThan(32 * mebibyte);
      expect(await remains(daemon)).toEqual([]);
      console.log(
        `Kata with ${wall}: canary in ${Math.round(canary.startSeconds)} s, its machine costs ${Math.round(canary.outside.overheadBytes / mebibyte)} MiB; it shows ${verdict.assertions.join(", ")}`,
      );
    },
    30 * minutes,
  );

  test(
    "a pod whose shim is killed is told, its container's exit too; its machine ends, and nothing of it stays",
    async () => {
      pod = (await cri.runtime.runPodSandbox({ config: sandbox(1), runtimeHandler: wall }, call()))
        .podSandboxId;
      const lost = await run("lost", "sleep 100000");
      const killed = (await processesNaming(pod)).filter(({ line }) => line.includes("containerd-shim-kata"));
      expect(killed.length).toBeGreaterThan(0);
      for (const { pid } of killed) process.kill(pid, "SIGKILL");
      expect((await ended(lost, 300)).exitCode).toBe(137);
      await until("word of the pod's end", 300, async () => {
        const { status } = await cri.runtime.podSandboxStatus({ podSandboxId: pod }, call(60));
        return status?.state === PodSandboxState.SANDBOX_NOTREADY ? true : undefined;
      });
      // Nobody has asked for its removal yet.
      await gone(pod);
      await cri.runtime.stopPodSandbox({ podSandboxId: pod }, call());
      await cri.runtime.removePodSandbox({ podSandboxId: pod }, call());
      await nothingLeft(pod);
    },
    30 * minutes,
  );
});

/** What a server says at once; undefined while nothing is heard. */
const said = (host: string, port: number): Promise<string | undefined> =>
  new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 15_000 });
    let text = "";
    const end = () => {
      socket.destroy();
      resolve(text === "" ? undefined : text);
    };
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      text += chunk;
      if (text.endsWith("\n")) end();
    });
    for (const event of ["error", "timeout", "close"]) socket.on(event, end);
  });

/** Where both of Kata's shims keep what is a sandbox's own. */
const ownDirectories = [
  ...["/run/kata", "/run/kata/firecracker", "/run/vc/sbs", "/run/vc/vm"],
  "/run/kata-containers/shared/sandboxes",
];

/** Running processes that have the pod's id in their command line: shim, hypervisor, virtiofsd. */
const processesNaming = async (id: string): Promise<{ pid: number; line: string }[]> => {
  const all = await Promise.all(
    (await readdir("/proc"))
      .filter((name) => /^[0-9]+$/.test(name))
      .map(async (pid) => ({
        pid: Number(pid),
        line: (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).replaceAll("\0", " "),
      })),
  );
  // Firecracker has an id of 32 characters from the older shim.
  return all.filter(({ line }) => line.includes(id.slice(0, 32)));
};
