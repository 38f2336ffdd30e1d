import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { ContainerRef, Handler, SandboxRef } from "@bulkhead/runtime/handler/handler.ts";
import { collectMetrics } from "@bulkhead/runtime/handler/shim/guest-metrics.ts";
import { openTestHost, type TestHost } from "@bulkhead/runtime/handler/shim/test-host.ts";
import { createDisks, type Disks } from "@bulkhead/runtime/snapshot/disks.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type FakeKata, writeFakeKata } from "./fake-kata.ts";

/**
 * The conventions of Kata's shim, without Kata: containerd's shim of runc driven as Kata is (sandbox first, root file
 * systems as mounts of the shim's), and a fake of Kata's own. A real Kata is driven by test/kata/kata.host.test.ts.
 */

const signal = () => AbortSignal.timeout(60_000);
/** Short: a socket below it has a pod's whole id in its path, as below /run/kata. */
const fakeRun = `/tmp/bh-fk${process.pid}`;
let host: TestHost;
let disks: Disks;

beforeAll(async () => {
  host = await openTestHost("runc");
  disks = await createDisks(join("/var/tmp", `bh-kata-disks-${process.pid}`));
});
afterAll(async () => {
  await disks?.sweep(new Set());
  await host?.[Symbol.asyncDispose]();
  rmSync(fakeRun, { recursive: true, force: true });
  execFileSync("rmdir", [`/var/tmp/bh-kata-disks-${process.pid}`]);
});

/** Processes that stand for a pod's machine. */
const machinesOf = (id: string): string[] =>
  readdirSync("/proc").filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(`machine-of-${id}`);
    } catch {
      return false;
    }
  });
/** What Kata's shims keep of a pod below /run. */
const kept = (id: string): string[] =>
  ["/run/vc/sbs", "/run/kata-containers/shared/sandboxes"].filter((dir) => existsSync(join(dir, id)));

const mountsBelow = (path: string): string[] =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .flatMap((line) => line.split(" ")[4] ?? [])
    .filter((point) => point.startsWith(path));

type Form = "shared" | "disk" | "device";
const kataOf = (form: Form) =>
  ({
    runtime: form === "device" ? "go" : "rust",
    rootfs: form === "shared" ? "virtio-fs" : "block",
    diskMiB: 64,
    metrics: false,
  }) as const;

/** A disk as the CRI layer makes it; undefined for a shared root. */
const diskOf = async (form: Form, key: string, directory: string): Promise<{ disk?: string }> => {
  if (form === "shared") return {};
  const file = await disks.make(key, directory, 64, signal());
  return { disk: form === "device" ? await disks.attach(key, signal()) : file };
};

const runPod = async (handler: Handler, form: Form): Promise<SandboxRef> => {
  const launch = host.newPod();
  const disk = await diskOf(form, launch.id, launch.rootfs);
  const state = await handler.runSandbox({ ...launch, ...disk }, signal());
  return { id: launch.id, stateDir: launch.stateDir, state: JSON.parse(JSON.stringify(state)) };
};
const run = async (handler: Handler, pod: SandboxRef, form: Form, args: string[]) => {
  const launch = host.newContainer(pod, args);
  const disk = await diskOf(form, launch.id, launch.rootfs);
  const ref: ContainerRef = host.refOf(launch, await handler.create({ ...launch, ...disk }, signal()));
  await handler.start(ref, signal());
  return { ref, rootfs: launch.rootfs };
};
const logOf = (ref: ContainerRef): string => readFileSync(ref.logPath, "utf8");
const removePod = async (handler: Handler, pod: SandboxRef): Promise<void> => {
  await handler.stopSandbox(pod, signal());
  await handler.removeSandbox(pod, signal());
  await disks.remove(pod.id);
};

describe.each<Form>(["shared", "disk", "device"])("runc's shim driven as Kata, its roots by %s,", (form) => {
  test("runs a pod of two containers, whose writes go where they should", async () => {
    await using opened = await host.openHandler({ wall: "vm", kata: kataOf(form) });
    const { handler } = opened;
    const pod = await runPod(handler, form);
    const write = "echo here >/written; dd if=/dev/zero of=/big bs=1M count=80 2>&1 || echo FULL; rm -f /big";
    const one = await run(handler, pod, form, ["/bin/sh", "-c", write]);
    const two = await run(handler, pod, form, ["/bin/sh", "-c", "[ -e /written ] || echo alone; sleep 100"]);
    expect((await host.exitOf(one.ref.id)).code).toBe(0);
    await host.until(
      () => existsSync(two.ref.logPath) && logOf(two.ref).includes("alone"),
      "the second container",
    );
    expect(existsSync(join(one.rootfs, "written"))).toBe(form === "shared");
    expect(logOf(one.ref).includes("FULL")).toBe(form !== "shared");
    for (const { ref } of [one, two]) {
      await handler.remove(ref, signal());
      await disks.remove(ref.id);
    }
    await removePod(handler, pod);
    expect(mountsBelow(host.dir).filter((point) => point.includes(pod.id))).toEqual([]);
    expect(execFileSync("losetup", ["-l", "-n", "-O", "BACK-FILE"], { encoding: "utf8" })).not.toContain(
      "bh-kata-disks",
    );
  });

  test("leaves the root's files alone when its shim was killed with the root mounted", async () => {
    await using opened = await host.openHandler({ wall: "vm", kata: kataOf(form) });
    const { handler } = opened;
    const pod = await runPod(handler, form);
    const { ref, rootfs } = await run(handler, pod, form, ["/bin/sleep", "100"]);
    process.kill((pod.state.shim as { pid: number }).pid, "SIGKILL");
    await host.until(() => host.sandboxExits.includes(pod.id), "the pod's loss");
    await handler.remove(ref, signal());
    await removePod(handler, pod);
    await disks.remove(ref.id);
    expect(existsSync(join(rootfs, "bin/busybox"))).toBe(true);
    expect(mountsBelow(host.dir).filter((point) => point.includes(ref.id))).toEqual([]);
  });
});

describe.each<Form>(["shared", "disk", "device"])("a fake of Kata's shim, roots by %s,", (form) => {
  let config: Partial<ShimHandlerConfig>;
  let fake: FakeKata;

  beforeAll(() => {
    fake = writeFakeKata(join(host.dir, `fake-kata-${form}`), fakeRun);
    config = { ...fake.config, kata: kataOf(form) };
  });
  const asked = () => fake.asked();

  test("takes the sandbox first, then the containers, as Kata would", async () => {
    let opened = await host.openHandler(config);
    const pod = await runPod(opened.handler, form);
    const { ref } = await run(opened.handler, pod, form, ["/bin/sleep", "100"]);
    await host.until(() => existsSync(ref.logPath) && logOf(ref).includes(`from ${ref.id}`), "output");
    expect(asked()).toMatchObject([
      {
        create: pod.id,
        type: "sandbox",
        rootfs: { shared: "shared", disk: "block file", device: "block device" }[form],
        root: "rootfs",
        options: {
          any: "runtimeoptions.v1.Options",
          type: "io.containerd.kata.v2.options",
          config: config.configPath,
        },
      },
      { create: ref.id, type: "container", annotations: { "io.kubernetes.cri.sandbox-id": pod.id } },
    ]);
    // Kata's metrics, as its shim serves them.
    const labels = { pod: "web", namespace: "shop", handler: "vm" };
    const monitor = { labels, socket: join(fakeRun, pod.id, "shim-monitor.sock") };
    const gone = { labels: { ...labels, pod: "gone" }, socket: join(fakeRun, "gone.sock") };
    expect(await collectMetrics([monitor, gone])).toBe(
      `# TYPE kata_shim_threads gauge\nkata_shim_threads{pod="web",namespace="shop",handler="vm"} 7\n\nkata_guest_load{pod="web",namespace="shop",handler="vm",item="load1"} 0.5\n`,
    );
    // A restart of the daemon: a container that is not there is told from a shim that fails.
    await opened[Symbol.asyncDispose]();
    opened = await host.openHandler(config);
    const lost = host.refOf(host.newContainer(pod, ["/x"]), {});
    const found = await opened.handler.recover(pod, [ref, lost], signal());
    expect(found.sandboxAlive).toBe(true);
    expect(found.containers.get(ref.id)).toEqual({ state: "running" });
    expect(found.containers.get(lost.id)).toEqual({ state: "unknown" });
    await opened.handler.kill(ref, 15, false, signal());
    expect((await host.exitOf(ref.id)).code).toBe(143);
    await opened.handler.remove(ref, signal());
    await opened.handler.remove(ref, signal());
    await removePod(opened.handler, pod);
    expect(asked().slice(-3)).toEqual([{ delete: ref.id }, { delete: pod.id }, { shutdown: pod.id }]);
    expect(kept(pod.id)).toEqual([]);
    await disks.remove(ref.id);
    await opened[Symbol.asyncDispose]();
  });

  test("whose shim is killed is told, and its machine ends though no one asks for its removal", async () => {
    await using opened = await host.openHandler(config);
    const { handler } = opened;
    const pod = await runPod(handler, form);
    const { ref } = await run(handler, pod, form, ["/bin/sleep", "100"]);
    expect(machinesOf(pod.id)).toHaveLength(1);
    process.kill((pod.state.shim as { pid: number }).pid, "SIGKILL");
    expect((await host.exitOf(ref.id)).code).toBe(137);
    await host.until(() => host.sandboxExits.includes(pod.id), "the pod's loss");
    expect(machinesOf(pod.id)).toEqual([]);
    await handler.remove(ref, signal());
    await removePod(handler, pod);
    await disks.remove(ref.id);
    expect(kept(pod.id)).toEqual([]);
  });

  test("whose shim is killed while the daemon is away leaves no machine either", async () => {
    const opened = await host.openHandler(config);
    const pod = await runPod(opened.handler, form);
    await opened[Symbol.asyncDispose]();
    const { pid } = pod.state.shim as { pid: number };
    process.kill(pid, "SIGKILL");
    // Killed is not gone: for a moment it may still be there to be found.
    await host.until(() => !existsSync(`/proc/${pid}`), "the shim's end");
    await using again = await host.openHandler(config);
    expect((await again.handler.recover(pod, [], signal())).sandboxAlive).toBe(false);
    expect(machinesOf(pod.id)).toEqual([]);
    await removePod(again.handler, pod);
    expect(kept(pod.id)).toEqual([]);
  });
});

/** Firecracker's drives. */
test("a fake of Kata's shim starts a container again and again in a pod of few drives, whether or not the last ones were removed", async () => {
  const form = "disk";
  const fake = writeFakeKata(join(host.dir, "fake-kata-drives"), fakeRun);
  await using opened = await host.openHandler({ ...fake.config, kata: kataOf(form) });
  const { handler } = opened;
  const pod = await runPod(handler, form);
  const end = async ({ ref }: { ref: ContainerRef }) => {
    await handler.kill(ref, 9, false, signal());
    await host.exitOf(ref.id);
  };
  const remove = async ({ ref }: { ref: Pick<ContainerRef, "id"> }) => {
    await handler.remove(ref as ContainerRef, signal());
    await disks.remove(ref.id);
  };
  const other = await run(handler, pod, form, ["/bin/sleep", "100"]);
  for (let time = 0; time < 2; time++) {
    const removed = await run(handler, pod, form, ["/bin/false"]);
    await end(removed);
    await remove(removed);
  }
  // One that cannot be made has had a drive all the same.
  const refused = host.newContainer(pod, ["/bin/false"]);
  refused.spec.annotations = { refuse: "no such control group file" };
  const disk = await diskOf(form, refused.id, refused.rootfs);
  await expect(handler.create({ ...refused, ...disk }, signal())).rejects.toThrow("no such control group");
  await remove({ ref: host.refOf(refused, {}) });
  // What has ended and was not removed yet holds no drive.
  const left = [];
  for (let time = 0; time < 4; time++) {
    const one = await run(handler, pod, form, ["/bin/false"]);
    await end(one);
    await host.until(
      () => fake.asked().some((each) => each.delete === one.ref.id),
      "the shim to be asked to let go of it",
    );
    left.push(one);
  }
  for (const each of [...left, other]) await remove(each);
  await removePod(handler, pod);
  expect(kept(pod.id)).toEqual([]);
  expect(mountsBelow(`/run/kata/firecracker/${pod.id}`)).toEqual([]);
});
