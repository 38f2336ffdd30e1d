import { readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import {
  CheckpointContainerRequestSchema,
  CheckpointPodRequestSchema,
  RestorePodRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { pushCheckpoint } from "../images/checkpoint.ts";
import { digestOf } from "../images/push.ts";
import type { RunningRegistry } from "../images/registry.ts";
import { run } from "../tools/run.ts";
import { type Daemon, remains } from "./daemon.ts";
import { busybox, containerConfig, criPods, type Fields, type Opened } from "./pods.ts";

/** Checkpoints of gVisor pods through the CRI, and what is made of them again. */

/** Counts in memory and on its root file system. */
const counting = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/var/count; sleep 0.05; done";

const cri = criPods({ name: "checkpoint", subnet: 92, handler: "gvisor" });
const { podConfig, runPod, createIn, start, startIn, removePod, execute } = cri;
let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let call: Opened["call"];
beforeAll(async () => {
  ({ scratch, registry, daemon, call } = await cri.open());
});
afterAll(cri.close);
/** As long as a busy machine may take. */
const eventually = <T>(value: () => Promise<T> | T) => expect.poll(value, { timeout: 30_000 });
const soon = () => AbortSignal.timeout(60_000);

const countOf = async (containerId: string): Promise<number> =>
  Number(await execute(containerId, "cat /var/count"));

const checkpoint = (containerId: string, location: string, signal = soon()) =>
  call.checkpointContainer(create(CheckpointContainerRequestSchema, { containerId, location }), signal);
const leftovers = async (): Promise<string[]> =>
  (await readdir(scratch)).filter((name) => name.startsWith(".checkpoint"));

test("CheckpointContainer of a gVisor container: the archive of CRI-O's layout, for root alone, and it goes on", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  await eventually(() => countOf(id)).toBeGreaterThan(3);
  const location = join(scratch, "one.tar");
  await checkpoint(id, location);
  const { mode } = await stat(location);
  expect(mode & 0o7777).toBe(0o600);
  expect(await leftovers()).toEqual([]);
  const names = (await run(["tar", "tf", location])).trim().split("\n");
  expect(names).toEqual([
    ...["config.dump", "rootfs-diff.tar", "spec.dump", "status"],
    ...["checkpoint/checkpoint.img", "checkpoint/pages.img", "checkpoint/pages_meta.img"],
  ]);
  await run(["tar", "xf", location, "-C", scratch, "config.dump", "spec.dump", "rootfs-diff.tar"]);
  const json = async (name: string) => JSON.parse(await readFile(join(scratch, name), "utf8"));
  expect(await json("config.dump")).toMatchObject({
    id,
    name: "main",
    rootfsImageName: busybox,
    runtime: "gvisor",
    restored: false,
  });
  expect(await json("spec.dump")).toMatchObject({ process: { args: ["sh", "-c", counting] } });
  const saved = Number(await run(["tar", "xOf", join(scratch, "rootfs-diff.tar"), "./var/count"]));
  expect(saved).toBeGreaterThan(3);
  await eventually(() => countOf(id)).toBeGreaterThan(saved);
  await removePod(pod.id);
});

test("CheckpointContainer of one of two running gVisor containers is refused in words and leaves nothing", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  const other = await startIn(pod, containerConfig("other", "sleep 1000"));
  const location = join(scratch, "two.tar");
  await expect(checkpoint(id, location)).rejects.toThrow(
    `Cannot checkpoint container "${id}": gVisor saves a pod as a whole, and 1 other container is in it`,
  );
  expect(await readdir(scratch)).not.toContain("two.tar");
  expect(await leftovers()).toEqual([]);
  // One that has ended is none of it.
  await daemon.crictl("stop", "-t", "0", other);
  await eventually(() => daemon.crictl("ps", "-a", "--id", other)).toContain("Exited");
  await checkpoint(id, location);
  expect(await readdir(scratch)).toContain("two.tar");
  await removePod(pod.id);
});

test.each([
  ["below a directory that is not there", () => join(scratch, "nowhere", "x.tar"), "Cannot write"],
  ["where a directory is", () => scratch, "Cannot write"],
  ["that is not absolute", () => "x.tar", "not an absolute path"],
])("a location %s is refused and leaves nothing", async (_, location, words) => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  const before = await readdir(scratch);
  await expect(checkpoint(id, location())).rejects.toThrow(words);
  expect(await readdir(scratch)).toEqual(before);
  await eventually(() => countOf(id)).toBeGreaterThan(1);
  await removePod(pod.id);
});

const restorable = { annotations: { "bulkhead.dev/restore": "true" } };
/** A pod's only container, saved; its pod is gone. */
const saved = async (location: string, script = counting): Promise<number> => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", script));
  await vi.waitFor(async () => expect(await countOf(id)).toBeGreaterThan(3), { timeout: 30_000 });
  await checkpoint(id, location);
  await removePod(pod.id);
  return Number(await run(["sh", "-c", `tar xOf ${location} rootfs-diff.tar | tar xOf - ./var/count`]));
};
/** The lines of the log before the first that is not a number: what it counted. */
const counted = async (id: string): Promise<number[]> =>
  (await daemon.crictl("logs", id)).trim().split("\n").map(Number);
const restoreFiles = () => readdir(join(daemon.handlersDir, "../root/restore")).catch(() => []);

describe("a container from a checkpoint archive", () => {
  let archive: string;
  let at: number;
  beforeAll(async () => {
    archive = join(scratch, "main.tar");
    at = await saved(archive);
  });

  test("goes on in another pod from where it was, with files and memory; then the pod is as any other", async () => {
    const pod = await runPod(restorable);
    const id = await createIn(pod, containerConfig("main", counting, archive));
    await start(id);
    await eventually(() => countOf(id)).toBeGreaterThan(at);
    const numbers = await counted(id);
    expect(numbers[0]).toBeGreaterThan(3);
    expect(numbers).toEqual(numbers.map((_, n) => (numbers[0] ?? 0) + n));
    const { status } = JSON.parse(await daemon.crictl("inspect", id));
    // The image that it stands on.
    expect(status).toMatchObject({ state: "CONTAINER_RUNNING", image: { image: busybox } });
    // An ordinary container beside it, and its exit.
    const other = await startIn(pod, containerConfig("other", "exit 7"));
    await eventually(async () => JSON.parse(await daemon.crictl("inspect", other)).status).toMatchObject({
      exitCode: 7,
    });
    await daemon.crictl("stop", "-t", "0", id);
    expect(JSON.parse(await daemon.crictl("inspect", id)).status).toMatchObject({ exitCode: 137 });
    await removePod(pod.id);
  });

  test("also when the daemon was killed between its making and its start", async () => {
    const pod = await runPod(restorable);
    const id = await createIn(pod, containerConfig("main", counting, archive));
    await daemon.end("SIGKILL");
    await daemon.start();
    await start(id);
    await eventually(() => countOf(id)).toBeGreaterThan(at);
    await removePod(pod.id);
  });

  test("is made by the request alone: with another command it does not start, and the pod is lost in words", async () => {
    const pod = await runPod(restorable);
    const id = await createIn(pod, containerConfig("main", "echo other", archive));
    await expect(start(id)).rejects.toThrow();
    await eventually(async () => JSON.parse(await daemon.crictl("inspectp", pod.id)).status.state).toBe(
      "SANDBOX_NOTREADY",
    );
    await removePod(pod.id);
  });

  test.each([
    [
      "in a pod that was not made for it",
      {},
      "gvisor",
      /FailedPrecondition|needs the annotation bulkhead.dev/,
    ],
    ["under runc", restorable, "runc", /restoreCheckpoints: true of the handler/],
  ])("%s is refused in words", async (_, fields, handler, words) => {
    const pod = await runPod(fields, handler);
    await expect(createIn(pod, containerConfig("main", counting, archive))).rejects.toThrow(words);
    await removePod(pod.id);
  });

  test("is refused where something has started, or a second time", async () => {
    const pod = await runPod(restorable);
    const first = await createIn(pod, containerConfig("main", counting, archive));
    await expect(createIn(pod, containerConfig("second", counting, archive))).rejects.toThrow(
      "has a checkpoint already",
    );
    await start(first);
    await expect(createIn(pod, containerConfig("third", counting, archive))).rejects.toThrow("has started");
    await removePod(pod.id);
  });

  test("may be an image with CRI-O's or containerd's annotation, of which nothing else is read", async () => {
    const annotations = { "org.criu.checkpoint.container.name": "../../etc" };
    await pushCheckpoint(registry.url, "saved/main:1", await readFile(archive), annotations);
    const ref = "registry.k8s.io/saved/main:1";
    await daemon.crictl("pull", ref);
    const pod = await runPod(restorable);
    const id = await startIn(pod, containerConfig("main", counting, ref));
    await eventually(() => countOf(id)).toBeGreaterThan(at);
    expect((await counted(id))[0]).toBeGreaterThan(3);
    await removePod(pod.id);
    // Nothing can run from it in an ordinary pod.
    const plain = await runPod();
    await expect(createIn(plain, containerConfig("main", counting, ref))).rejects.toThrow("annotation");
    await removePod(plain.id);
  });

  test("an archive that says more than its memory image gives no more (CVE-2024-8676, 2026-53492, 53489, 50195)", async () => {
    const hostile = join(scratch, "hostile.tar");
    const files = join(scratch, "hostile");
    await run(["sh", "-c", `mkdir ${files} && tar xf ${archive} -C ${files}`]);
    const spec = JSON.parse(await readFile(join(files, "spec.dump"), "utf8"));
    spec.mounts.push({ destination: "/host", type: "bind", source: "/", options: ["rbind", "rw"] });
    spec.linux.devices = [{ path: "/dev/host", type: "c", major: 1, minor: 1 }];
    spec.process.capabilities.bounding = ["CAP_SYS_ADMIN"];
    spec.annotations = { "cdi.k8s.io/x": "vendor.com/gpu=all", "dev.gvisor.flag.host-uds": "all" };
    spec.hooks = { createRuntime: [{ path: "/bin/touch", args: ["touch", join(scratch, "hooked")] }] };
    await writeFile(join(files, "spec.dump"), JSON.stringify(spec));
    const config = JSON.parse(await readFile(join(files, "config.dump"), "utf8"));
    const name = "registry.k8s.io/pause:3.9";
    await writeFile(
      join(files, "config.dump"),
      JSON.stringify({
        ...config,
        rootfsImageName: name,
        config: { mounts: [{ host_path: "/", container_path: "/host" }] },
      }),
    );
    await writeFile(join(files, "bind.mounts"), JSON.stringify([{ source: "/", destination: "/host" }]));
    await symlink("/etc/shadow", join(files, "container.log"));
    await run(["tar", "cf", hostile, "-C", files, "."]);
    const images = await daemon.crictl("images");
    const pod = await runPod(restorable);
    const id = await startIn(pod, containerConfig("main", counting, hostile));
    await eventually(() => countOf(id)).toBeGreaterThan(at);
    expect(await execute(id, "ls -d /host /dev/host 2>/dev/null; grep -c ' /host ' /proc/mounts")).toBe(
      "0\n",
    );
    const said = JSON.parse(await daemon.crictl("inspect", id));
    expect(said.status.mounts).toEqual([]);
    const used = JSON.parse(await readFile(join(daemon.state, "containers", id, id, "config.json"), "utf8"));
    expect(JSON.stringify(used)).not.toMatch(/"\/host"|\/dev\/host|cdi|host-uds|hooked/);
    expect(used.process.capabilities.bounding).not.toContain("CAP_SYS_ADMIN");
    expect(await readdir(scratch)).not.toContain("hooked");
    expect((await counted(id)).every(Number.isInteger)).toBe(true);
    expect(await daemon.crictl("images")).toBe(images);
    await removePod(pod.id);
  });

  test("an ordinary container starts in a pod that could be restored, and one that never starts goes too", async () => {
    const pod = await runPod(restorable);
    const id = await startIn(pod, containerConfig("main", counting));
    await eventually(() => countOf(id)).toBeGreaterThan(1);
    await removePod(pod.id);
    const idle = await runPod(restorable);
    await createIn(idle, containerConfig("main", counting, archive));
    await removePod(idle.id);
    expect(await restoreFiles()).toEqual([]);
  });
});

describe("a pod's checkpoint", () => {
  const scripts = { main: counting, second: "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done" };
  const configs = () => Object.entries(scripts).map(([name, script]) => containerConfig(name, script));
  const checkpointPod = (podSandboxId: string, outputPath: string, fields: Fields = {}) =>
    call.checkpointPod(create(CheckpointPodRequestSchema, { podSandboxId, outputPath, ...fields }), soon());
  const restorePod = (checkpointPath: string, fields: Fields = {}) =>
    call.restorePod(
      create(RestorePodRequestSchema, {
        checkpointPath,
        config: podConfig(),
        runtimeHandler: "gvisor",
        containerConfigs: configs(),
        ...fields,
      }),
      soon(),
    );
  let output: string;

  test("CheckpointPod: memory of all containers, digests, for root alone; the pod goes on", async () => {
    output = join(scratch, "pod");
    const pod = await runPod();
    const ids: string[] = [];
    for (const config of configs()) ids.push(await startIn(pod, config));
    await eventually(async () => (await counted(ids[1] ?? "")).length).toBeGreaterThan(3);
    await checkpointPod(pod.id, output);
    expect((await readdir(output)).sort()).toEqual(["checkpoint", "pod.dump"]);
    const dump = JSON.parse(await readFile(join(output, "pod.dump"), "utf8"));
    expect(dump).toMatchObject({ handler: "gvisor", containers: [{ name: "main" }, { name: "second" }] });
    for (const [name, { sha256 }] of Object.entries<{ sha256: string }>(dump.files)) {
      expect((await stat(join(output, name))).mode & 0o777).toBe(0o600);
      expect(digestOf(await readFile(join(output, name)))).toBe(`sha256:${sha256}`);
    }
    const before = await countOf(ids[0] ?? "");
    await eventually(() => countOf(ids[0] ?? "")).toBeGreaterThan(before);

    const other = join(scratch, "other");
    await expect(checkpointPod(pod.id, other, { containerIds: [ids[0]] })).rejects.toThrow(
      "1 more container is in it than were named",
    );
    await expect(checkpointPod(pod.id, other, { options: { fast: "1" } })).rejects.toThrow("no option");
    await expect(checkpointPod(pod.id, output)).rejects.toThrow("it is not empty");
    expect(await readdir(scratch)).not.toContain("other");
    await removePod(pod.id);
  });

  test("RestorePod: a new pod whose containers go on", async () => {
    const { podSandboxId, restoredContainers } = await restorePod(output);
    expect(restoredContainers.map(({ name }) => name).sort()).toEqual(["main", "second"]);
    for (const { containerId } of restoredContainers) {
      await eventually(async () => (await counted(containerId)).length).toBeGreaterThan(3);
      expect((await counted(containerId))[0]).toBeGreaterThan(1);
    }
    await removePod(podSandboxId);
    expect(await restoreFiles()).toEqual([]);
  });

  test.each<[string, Fields, string | RegExp]>([
    [
      "other containers",
      { containerConfigs: [containerConfig("main", counting)] },
      "containers [main, second] were saved",
    ],
    ["options", { options: { fast: "1" } }, 'no option "fast"'],
    [
      "another command",
      { containerConfigs: [containerConfig("main", "true"), containerConfig("second", scripts.second)] },
      /./,
    ],
    ["runc", { runtimeHandler: "runc" }, 'handler "runc" restores no pods'],
  ])("RestorePod with %s is refused and leaves no pod", async (_, fields, words) => {
    await expect(restorePod(output, fields)).rejects.toThrow(words);
    expect(await daemon.crictl("pods", "-q")).toBe("");
    expect(await restoreFiles()).toEqual([]);
  });

  test("RestorePod takes no file that is not what pod.dump says", async () => {
    const image = join(output, "checkpoint/checkpoint.img");
    const bytes = await readFile(image);
    await writeFile(image, Buffer.concat([bytes.subarray(0, -1), Buffer.from([bytes.at(-1)! ^ 1])]));
    await expect(restorePod(output)).rejects.toThrow("is not what pod.dump says");
    await rm(image);
    await symlink("/etc/passwd", image);
    await expect(restorePod(output)).rejects.toThrow("is not a plain file");
    await rm(image);
    await expect(restorePod(output)).rejects.toThrow("has no checkpoint/checkpoint.img");
    await expect(restorePod(join(scratch, "nowhere"))).rejects.toThrow("ENOENT");
    expect(await daemon.crictl("pods", "-q")).toBe("");
  });

  test("CheckpointPod under runc is refused in words", async () => {
    const pod = await runPod({}, "runc");
    await startIn(pod, containerConfig("main", counting));
    await expect(checkpointPod(pod.id, join(scratch, "runc"))).rejects.toThrow(
      'handler "runc" saves no pods',
    );
    await removePod(pod.id);
  });
});

test("nothing is left of all these pods", async () => {
  expect(await remains(daemon)).toEqual([]);
});
