import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { create, type DescService } from "@bufbuild/protobuf";
import { type CriClient, type CriServices, connectCri } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { front } from "./front.ts";

const bin = join(process.env.BULKHEAD_CACHE ?? join(homedir(), ".cache/bulkhead"), "bin");

/** A fake of our own side that has nothing: every answer is empty. The engine behind is a real containerd. */
const empty = (service: DescService) =>
  Object.fromEntries(
    service.methods.map((method) => [
      method.localName,
      method.methodKind === "unary" ? async () => create(method.output) : async function* () {},
    ]),
  );
const nothing = { runtime: empty(RuntimeService), image: empty(ImageService) } as unknown as CriServices;

let dir: string;
let containerd: ChildProcess;
let engine: CriClient;
let fronted: CriServices;
const signal = AbortSignal.timeout(120_000);
const r = RuntimeService.method;

async function startContainerd(): Promise<void> {
  containerd = spawn(join(bin, "containerd"), ["--config", join(dir, "config.toml")], { stdio: "ignore" });
  await vi.waitFor(() => engine.runtime.version(create(r.version.input), AbortSignal.timeout(2000)), {
    timeout: 30_000,
    interval: 200,
  });
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-front-"));
  await writeFile(
    join(dir, "config.toml"),
    `version = 3\nroot = "${dir}/root"\nstate = "${dir}/state"\n[grpc]\naddress = "${dir}/c.sock"\n[ttrpc]\naddress = "${dir}/t.sock"\n`,
  );
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
  await startContainerd();
});

afterAll(async () => {
  engine[Symbol.dispose]();
  containerd.kill("SIGTERM");
  await once(containerd, "exit");
  await rm(dir, { recursive: true, force: true });
});

test("Version and Status show the engine behind, with its handlers", async () => {
  const { runtimeVersion } = await fronted.runtime.version(create(r.version.input), signal);
  expect(runtimeVersion).toContain("containerd");
  const { runtimeHandlers } = await fronted.runtime.status(create(r.status.input), signal);
  expect(runtimeHandlers.map(({ name }) => name)).toContain("runc");
});

test("An id that is not ours is the engine's, with the engine's answer and code", async () => {
  await expect(
    fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
  ).rejects.toMatchObject({ code: "not-found" });
  await fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "ours" }), signal);
});

test("While the engine is down its lists stand as last known, its calls fail and say why, ours go on", async () => {
  await fronted.runtime.listPodSandbox(create(r.listPodSandbox.input), signal);
  containerd.kill("SIGKILL");
  await once(containerd, "exit");
  const { runtimeHandlers } = await fronted.runtime.status(create(r.status.input), signal);
  expect(runtimeHandlers.map(({ name }) => name)).toContain("runc");
  await fronted.runtime.listPodSandbox(create(r.listPodSandbox.input), signal);
  await expect(
    fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
  ).rejects.toMatchObject({
    code: "unavailable",
    message: expect.stringContaining(`engine at ${dir}/c.sock`),
  });
  await fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "ours" }), signal);

  await startContainerd();
  await expect(
    fronted.runtime.podSandboxStatus(create(r.podSandboxStatus.input, { podSandboxId: "theirs" }), signal),
  ).rejects.toMatchObject({ code: "not-found" });
});
