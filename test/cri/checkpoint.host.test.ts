import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import {
  CheckpointContainerRequestSchema,
  ContainerConfigSchema,
  CreateContainerRequestSchema,
  ExecSyncRequestSchema,
  type PodSandboxConfig,
  PodSandboxConfigSchema,
  RemovePodSandboxRequestSchema,
  RunPodSandboxRequestSchema,
  StartContainerRequestSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { type RunningRegistry, startRegistry } from "../images/registry.ts";
import { inCache } from "../tools/cache.ts";
import { run } from "../tools/run.ts";
import { createDaemon, type Daemon, remains } from "./daemon.ts";

/** Checkpoints of gVisor pods through the CRI, and what is made of them again. */

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/** Counts in memory and on its root file system. */
const counting = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/var/count; sleep 0.05; done";

let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let serial = 0;
let engine: ReturnType<typeof connectCri>;
let call: ReturnType<typeof connectCri>["runtime"];
const soon = () => AbortSignal.timeout(60_000);

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-checkpoint-"));
  registry = await startRegistry({ dir: inCache("cri-registry") });
  await ensureTestImages(registry.host, ["e2e-test-images/busybox:1.29-2"]);
  daemon = await createDaemon({ registry: registry.host, subnet: 92 });
  await daemon.start();
  engine = connectCri(daemon.socket);
  call = engine.runtime;
  await daemon.crictl("pull", busybox);
});
afterAll(async () => {
  engine?.[Symbol.dispose]();
  await daemon?.[Symbol.asyncDispose]();
  await registry?.stop();
  await rm(scratch, { recursive: true, force: true });
});

type Fields = Record<string, unknown>;
type Pod = { id: string; config: PodSandboxConfig };

const podConfig = (fields: Fields = {}): PodSandboxConfig => {
  const name = `pod-${++serial}`;
  return fromJson(PodSandboxConfigSchema, {
    metadata: { name, namespace: "test", uid: name, attempt: 0 },
    log_directory: join(scratch, name),
    linux: { security_context: { namespace_options: { pid: 1 } } },
    ...fields,
  } as JsonValue);
};

const runPod = async (fields: Fields = {}, runtimeHandler = "gvisor"): Promise<Pod> => {
  const config = podConfig(fields);
  const request = create(RunPodSandboxRequestSchema, { config, runtimeHandler });
  return { id: (await call.runPodSandbox(request, soon())).podSandboxId, config };
};

const containerConfig = (name: string, script: string, image = busybox, fields: Fields = {}) =>
  fromJson(ContainerConfigSchema, {
    metadata: { name, attempt: 0 },
    image: { image },
    command: ["sh", "-c", script],
    log_path: `${name}.log`,
    ...fields,
  } as JsonValue);

const createIn = async (pod: Pod, config: ReturnType<typeof containerConfig>): Promise<string> => {
  const request = create(CreateContainerRequestSchema, {
    podSandboxId: pod.id,
    config,
    sandboxConfig: pod.config,
  });
  return (await call.createContainer(request, soon())).containerId;
};
const start = (containerId: string) =>
  call.startContainer(create(StartContainerRequestSchema, { containerId }), soon());
const startIn = async (pod: Pod, config: ReturnType<typeof containerConfig>): Promise<string> => {
  const id = await createIn(pod, config);
  await start(id);
  return id;
};
const removePod = (podSandboxId: string) =>
  call.removePodSandbox(create(RemovePodSandboxRequestSchema, { podSandboxId }), soon());

const execute = async (containerId: string, script: string): Promise<string> => {
  const request = create(ExecSyncRequestSchema, { containerId, cmd: ["sh", "-c", script], timeout: 30n });
  return Buffer.from((await call.execSync(request, soon())).stdout).toString();
};
const countOf = async (containerId: string): Promise<number> =>
  Number(await execute(containerId, "cat /var/count"));

const checkpoint = (containerId: string, location: string, signal = soon()) =>
  call.checkpointContainer(create(CheckpointContainerRequestSchema, { containerId, location }), signal);
const leftovers = async (): Promise<string[]> =>
  (await readdir(scratch)).filter((name) => name.startsWith(".checkpoint"));

test("CheckpointContainer of a gVisor container: the archive of CRI-O's layout, for root alone, and it goes on", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  await expect.poll(() => countOf(id)).toBeGreaterThan(3);
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
  await expect.poll(() => countOf(id)).toBeGreaterThan(saved);
  await removePod(pod.id);
});

test("CheckpointContainer of one of two running gVisor containers is refused in words and leaves nothing", async () => {
  const pod = await runPod();
  const id = await startIn(pod, containerConfig("main", counting));
  const other = await startIn(pod, containerConfig("other", "sleep 0.2"));
  const location = join(scratch, "two.tar");
  await expect(checkpoint(id, location)).rejects.toThrow(
    `Cannot checkpoint container "${id}": gVisor saves a pod as a whole, and 1 other container is in it`,
  );
  expect(await readdir(scratch)).not.toContain("two.tar");
  expect(await leftovers()).toEqual([]);
  // One that has ended is none of it.
  await expect.poll(() => daemon.crictl("ps", "-a", "--id", other)).toContain("Exited");
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
  await expect.poll(() => countOf(id)).toBeGreaterThan(1);
  await removePod(pod.id);
});

test("nothing is left of all these pods", async () => {
  expect(await remains(daemon)).toEqual([]);
});
