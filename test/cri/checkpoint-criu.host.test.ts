import { existsSync } from "node:fs";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { CheckpointContainerRequestSchema, CheckpointPodRequestSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { pushCheckpoint } from "../images/checkpoint.ts";
import type { RunningRegistry } from "../images/registry.ts";
import { tool } from "../tools/cache.ts";
import { criuHome } from "../tools/criu.ts";
import { run } from "../tools/run.ts";
import { type Daemon, remains } from "./daemon.ts";
import { busybox, containerConfig, criPods, type Opened } from "./pods.ts";

/** Checkpoints of runc's containers by CRIU through the CRI, and what is made of them again. */

/** Counts in memory, on its output and on its root file system; ends by the signal that it is told to end by. */
const counting =
  "rm /bin/vi; trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; echo $i >/var/count; sleep 0.05; done";

const cri = criPods({
  name: "criu",
  subnet: 94,
  handler: "trusted",
  under: () => ["env", `PATH=${criuHome()}:${process.env.PATH}`],
  prepare: async ({ handlersDir }) => {
    for (const [name, more] of Object.entries({ trusted: { restoreCheckpoints: true }, plain: {} })) {
      const handler = { kind: "oci", name, binary: tool("runc"), ...more };
      await writeFile(join(handlersDir, `${name}.yaml`), JSON.stringify(handler));
    }
  },
});
const { runPod, createIn, start, startIn, removePod, execute } = cri;
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

const countOf = async (id: string) => Number(await execute(id, "cat /var/count"));
const checkpoint = (containerId: string, location: string, signal = soon()) =>
  call.checkpointContainer(create(CheckpointContainerRequestSchema, { containerId, location }), signal);
type Status = { state: string; exitCode: number; reason: string; image: { image: string } };
const statusOf = async (id: string): Promise<Status> =>
  (JSON.parse(await daemon.crictl("inspect", id)) as { status: Status }).status;
const logOf = async (id: string): Promise<number[]> =>
  (await daemon.crictl("logs", id)).trim().split("\n").map(Number);

let archive: string;
let at: number;

test("CheckpointContainer: the archive of CRI-O's layout, for root alone, of one moment; and it goes on", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  await vi.waitFor(async () => expect(await countOf(id)).toBeGreaterThan(3), { timeout: 30_000 });
  archive = join(scratch, "main.tar");
  await checkpoint(id, archive);
  expect((await stat(archive)).mode & 0o7777).toBe(0o600);
  const names = (await run(["tar", "tf", archive])).trim().split("\n");
  expect(names.slice(0, 4)).toEqual(["config.dump", "rootfs-diff.tar", "spec.dump", "status"]);
  expect(names).toContain("checkpoint/inventory.img");
  expect(names).toContain("checkpoint/descriptors.json");
  at = Number(await run(["sh", "-c", `tar xOf ${archive} rootfs-diff.tar | tar xOf - var/count`]));
  expect(at).toBeGreaterThan(3);
  await eventually(() => countOf(id)).toBeGreaterThan(at);
  await removePod(pod.id);
});

test("a container made of it goes on in another pod: memory, files, log, exec and its exit code", async () => {
  const pod = await runPod();
  const id = await createIn(pod, containerConfig("main", counting, archive));
  expect(await statusOf(id)).toMatchObject({ state: "CONTAINER_CREATED", image: { image: busybox } });
  await start(id);
  await eventually(() => countOf(id)).toBeGreaterThan(at);
  const numbers = await logOf(id);
  expect(Math.abs((numbers[0] ?? 0) - at)).toBeLessThan(2);
  expect(numbers).toEqual(numbers.map((_, n) => (numbers[0] ?? 0) + n));
  expect(await execute(id, "ls /bin/vi 2>&1; hostname")).toContain("No such file");
  await daemon.crictl("stop", "-t", "10", id);
  expect(await statusOf(id)).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 7 });
  await removePod(pod.id);
});

test("an image of it, by CRI-O's or containerd's annotation, does the same in a pod of a shared PID namespace", async () => {
  const annotations = { "io.kubernetes.cri-o.annotations.checkpoint.name": "main" };
  const shared = { linux: { security_context: { namespace_options: { pid: 0 } } } };
  const from = await runPod(shared);
  const saved = await startIn(from, containerConfig("main", counting));
  await eventually(() => countOf(saved)).toBeGreaterThan(3);
  const location = join(scratch, "shared.tar");
  await checkpoint(saved, location);
  await removePod(from.id);
  await pushCheckpoint(registry.url, "saved/criu:1", await readFile(location), annotations);
  const ref = "registry.k8s.io/saved/criu:1";
  await daemon.crictl("pull", ref);
  const pod = await runPod(shared);
  const id = await startIn(pod, containerConfig("main", counting, ref));
  await eventually(async () => (await logOf(id)).length).toBeGreaterThan(3);
  expect((await logOf(id))[0]).toBeGreaterThan(3);
  // What it is made from is gone with its start.
  expect(await readdir(join(daemon.handlersDir, "../root/restore"))).toEqual([]);
  // Saved again, it goes on again.
  await checkpoint(id, join(scratch, "again.tar"));
  await removePod(pod.id);
  const next = await runPod(shared);
  const third = await startIn(next, containerConfig("main", counting, join(scratch, "again.tar")));
  await eventually(async () => (await logOf(third)).length).toBeGreaterThan(3);
  await removePod(next.id);
});

test("locks and children are kept, and a terminal", async () => {
  const pod = await runPod();
  const withTerminal = { tty: true, stdin: true };
  const busy = `sleep 1234 & exec 9>/lock; flock 9; ${counting}`;
  const id = await startIn(pod, containerConfig("main", busy));
  const terminal = await startIn(pod, containerConfig("terminal", counting, busybox, withTerminal));
  for (const each of [id, terminal]) await eventually(() => countOf(each)).toBeGreaterThan(3);
  const locations = { main: join(scratch, "busy.tar"), terminal: join(scratch, "terminal.tar") };
  await checkpoint(id, locations.main);
  await checkpoint(terminal, locations.terminal);
  await removePod(pod.id);
  const other = await runPod();
  const restored = await startIn(other, containerConfig("main", busy, locations.main));
  await eventually(async () => (await logOf(restored)).length).toBeGreaterThan(3);
  expect(await execute(restored, "flock -n /lock echo free || echo held")).toBe("held\n");
  expect(await execute(restored, "ps -o args")).toContain("sleep 1234");
  const again = await startIn(other, containerConfig("terminal", counting, locations.terminal, withTerminal));
  await eventually(async () => (await logOf(again)).length).toBeGreaterThan(3);
  expect((await logOf(again))[0]).toBeGreaterThan(3);
  expect(await execute(again, "readlink /proc/1/fd/0")).toMatch(/^\/dev\/(pts|console)/);
  await removePod(other.id);
});

test("a daemon that is killed in the middle of a checkpoint lets the container go on when it is back", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  await eventually(() => countOf(id)).toBeGreaterThan(3);
  const paused = join(daemon.state, "containers", id, "paused");
  const saving = checkpoint(id, join(scratch, "killed.tar")).catch(() => {});
  await vi.waitUntil(() => existsSync(paused), { timeout: 20_000, interval: 1 });
  await daemon.end("SIGKILL");
  await saving;
  // What the daemon had begun comes to its end.
  await sleep(1500);
  await daemon.start();
  expect(existsSync(paused)).toBe(false);
  const before = await countOf(id);
  await eventually(() => countOf(id)).toBeGreaterThan(before);
  expect(existsSync(join(scratch, "killed.tar"))).toBe(false);
  await removePod(pod.id);
});

test("also when the daemon was killed between its making and its start; what never starts goes too", async () => {
  const pod = await runPod();
  const id = await createIn(pod, containerConfig("main", counting, archive));
  const never = await createIn(pod, containerConfig("never", counting, archive));
  await daemon.end("SIGKILL");
  await daemon.start();
  await start(id);
  await eventually(() => countOf(id)).toBeGreaterThan(at);
  await daemon.crictl("rm", "-f", never);
  await daemon.end("SIGKILL");
  await daemon.start();
  expect(await statusOf(id)).toMatchObject({ state: "CONTAINER_RUNNING" });
  await daemon.crictl("stop", "-t", "10", id);
  expect(await statusOf(id)).toMatchObject({ exitCode: 7 });
  await removePod(pod.id);
});

test("nothing is restored where the node's administrator has not allowed it, and the words say how", async () => {
  const pod = await runPod({}, "plain");
  await expect(createIn(pod, containerConfig("main", counting, archive))).rejects.toThrow(
    /FailedPrecondition|failed-precondition|restoreCheckpoints: true/,
  );
  await removePod(pod.id);
});

test("of an archive come the memory image and the files, and nothing that is not in the request", async () => {
  const files = join(scratch, "hostile");
  await run(["sh", "-c", `mkdir ${files} && tar xf ${archive} -C ${files}`]);
  const spec = JSON.parse(await readFile(join(files, "spec.dump"), "utf8"));
  spec.mounts.push({ destination: "/host", type: "bind", source: "/", options: ["rbind", "rw"] });
  spec.annotations = { "org.criu.config": join(scratch, "criu.conf") };
  await writeFile(join(files, "spec.dump"), JSON.stringify(spec));
  await run([
    "sh",
    "-c",
    `cd ${files} && mkdir -p t u/out && ln -s ${scratch} t/out && echo x >u/out/escaped &&
     tar cf d.tar -C t out && tar rf d.tar -C "$PWD/u" out/escaped && tar Af rootfs-diff.tar d.tar && rm -r d.tar t u`,
  ]);
  const hostile = join(scratch, "hostile.tar");
  await run(["tar", "cf", hostile, "-C", files, "."]);
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting, hostile));
  await eventually(async () => (await logOf(id)).length).toBeGreaterThan(3);
  expect(await readdir(scratch)).not.toContain("escaped");
  const used = await readFile(join(daemon.state, "containers", id, "config.json"), "utf8");
  expect(used).not.toMatch(/"\/host"/);
  expect(JSON.parse(used).annotations["org.criu.config"]).toBe(
    join(daemon.state, "containers", id, "criu.conf"),
  );
  await removePod(pod.id);
});

test("a damaged memory image ends in StartError with CRIU's words", async () => {
  const files = join(scratch, "damaged");
  await run([
    "sh",
    "-c",
    `mkdir ${files} && tar xf ${archive} -C ${files} && : >${files}/checkpoint/pstree.img`,
  ]);
  const damaged = join(scratch, "damaged.tar");
  await run(["tar", "cf", damaged, "-C", files, "."]);
  const pod = await runPod();
  const id = await createIn(pod, containerConfig("main", counting, damaged));
  await expect(start(id)).rejects.toThrow(/Cannot restore container/);
  expect(await statusOf(id)).toMatchObject({ exitCode: 128, reason: "StartError" });
  await removePod(pod.id);
});

test("what containers of a pod share is in no checkpoint of theirs: why pods are not saved under runc", async () => {
  const pod = await runPod();
  const shares = `exec 9>/dev/shm/shared; ${counting}`;
  const id = await startIn(pod, containerConfig("main", shares));
  await eventually(() => countOf(id)).toBeGreaterThan(3);
  const location = join(scratch, "shares.tar");
  await checkpoint(id, location);
  const request = create(CheckpointPodRequestSchema, {
    podSandboxId: pod.id,
    outputPath: join(scratch, "pod"),
  });
  await expect(call.checkpointPod(request, soon())).rejects.toThrow(/saves no pods/);
  await removePod(pod.id);
  const next = await runPod();
  const restored = await createIn(next, containerConfig("main", shares, location));
  await expect(start(restored)).rejects.toThrow(/shm\/shared|No such file/);
  await removePod(next.id);
});

test("nothing is left of all these containers", async () => {
  expect(await remains(daemon)).toEqual([]);
});
