import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { create } from "@bufbuild/protobuf";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ContainerRef, Handler, SandboxRef } from "../handler.ts";
import { processesIn } from "./processes.ts";
import { openTestHost, type TestHost } from "./test-host.ts";

/** Against containerd-shim-unshare-v1 (test/tools/containerd/unshare), which knows of pods by the sandbox API alone. */
let host: TestHost;
let handler: Handler;
let life: AsyncDisposable;

const open = async () => {
  const opened = await host.openHandler();
  handler = opened.handler;
  life = opened;
};
beforeAll(async () => {
  host = await openTestHost("unshare");
  await open();
});
afterAll(async () => {
  await life?.[Symbol.asyncDispose]();
  await host?.[Symbol.asyncDispose]();
});

const signal = () => AbortSignal.timeout(60_000);
const runPod = async (): Promise<SandboxRef> => {
  const launch = {
    ...host.newPod(),
    config: create(PodSandboxConfigSchema, { metadata: { name: "pod", uid: "1", namespace: "n" } }),
  };
  const state = await handler.runSandbox(launch, signal());
  return { id: launch.id, stateDir: launch.stateDir, state: JSON.parse(JSON.stringify(state)) };
};
const run = async (pod: SandboxRef, args: string[]): Promise<ContainerRef> => {
  const launch = host.newContainer(pod, args);
  const ref = host.refOf(launch, await handler.create(launch, signal()));
  await handler.start(ref, signal());
  return ref;
};
const exec = async (ref: ContainerRef, args: string[], input?: string) => {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const process = { ...host.base, args };
  const running = await handler.exec(
    ref,
    { process, ...(input === undefined ? {} : { stdin }), stdout, stderr, tty: false },
    signal(),
  );
  stdin.end(input);
  const said = text(stdout);
  const code = await running.exited;
  stdout.end();
  return { code, out: await said };
};
const removePod = async (pod: SandboxRef) => {
  await handler.stopSandbox(pod, signal());
  await handler.removeSandbox(pod, signal());
  expect(readdirSync(pod.stateDir)).toEqual([]);
  expect(processesIn(`${pod.stateDir}/${pod.id}`)).toEqual([]);
};

test("a pod is made, watched and ended by its shim, and no container holds it", async () => {
  const pod = await runPod();
  expect(pod.state).toMatchObject({ sandboxApi: true, holder: false, version: 3 });
  const ref = await run(pod, ["sh", "-c", "readlink /proc/self/ns/net; echo $$; sleep 0.2; exit 5"]);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 5 });
  const lines = readFileSync(ref.logPath, "utf8").replaceAll(/^\S+ stdout F /gm, "");
  expect(lines).toMatch(/^net:\[\d+\]\n1\n$/);
  expect(lines).not.toContain(readlinkSync("/proc/self/ns/net"));
  // A shim without statistics has none, which is no failure.
  expect(await handler.stats(ref, signal())).toBeUndefined();
  await handler.remove(ref, signal());
  await removePod(pod);
  expect(host.sandboxExits).not.toContain(pod.id);
});

test("exec, input to its end, and a signal work through the task API beside it", async () => {
  const pod = await runPod();
  const ref = await run(pod, ["sleep", "1000"]);
  expect(await exec(ref, ["sh", "-c", "cat; exit 3"], "hello\n")).toEqual({ code: 3, out: "hello\n" });
  await handler.kill(ref, 9, true, signal());
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 137 });
  await handler.remove(ref, signal());
  await removePod(pod);
});

test("after a restart of the daemon the pod is found alive, and its end is reported", async () => {
  const pod = await runPod();
  const ref = await run(pod, ["sleep", "1000"]);
  await life[Symbol.asyncDispose]();
  await open();
  const found = await handler.recover(pod, [ref], signal());
  expect(found.sandboxAlive).toBe(true);
  expect(found.containers.get(ref.id)).toEqual({ state: "running" });
  for (const { pid } of processesIn(`${pod.stateDir}/${pod.id}`)) process.kill(pid, "SIGKILL");
  await host.until(() => host.sandboxExits.includes(pod.id), "the sandbox's end");
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  await handler.remove(ref, signal());
  await removePod(pod);
});
