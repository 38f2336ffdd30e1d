import { readFileSync } from "node:fs";
import { PassThrough } from "node:stream";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ContainerRef, Handler, SandboxRef } from "../handler.ts";
import { openTestHost, type Shell, type TestHost } from "./test-host.ts";

let host: TestHost;
let handler: Handler;
let pod: SandboxRef;
let life: AsyncDisposable;
const signal = () => AbortSignal.timeout(60_000);

const runPod = async (): Promise<SandboxRef> => {
  const launch = host.newPod();
  return { id: launch.id, stateDir: launch.stateDir, state: await handler.runSandbox(launch, signal()) };
};
const run = async (args: string[], io: Shell = {}): Promise<ContainerRef> => {
  const launch = host.newContainer(pod, args, io);
  const ref = host.refOf(launch, await handler.create(launch, signal()));
  await handler.start(ref, signal());
  return ref;
};
const logOf = (ref: ContainerRef) => readFileSync(ref.logPath, "utf8");

beforeAll(async () => {
  host = await openTestHost("gvisor");
  const opened = await host.openHandler();
  handler = opened.handler;
  life = opened;
  pod = await runPod();
});
afterAll(async () => {
  await handler.stopSandbox(pod, signal());
  await handler.removeSandbox(pod, signal());
  await life[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

test("two containers of a pod run behind gVisor's kernel, log, and exit with their own codes", async () => {
  const one = await run(["sh", "-c", "cat /proc/version; echo oops >&2; exit 3"]);
  const two = await run(["sh", "-c", "echo two; exit 0"]);
  expect(await host.exitOf(one.id)).toMatchObject({ code: 3, oomKilled: false });
  expect(await host.exitOf(two.id)).toMatchObject({ code: 0 });
  expect(logOf(one)).toMatch(/stdout:Linux version .*\n/);
  expect(logOf(one)).toContain("stderr:oops\n");
  expect(logOf(two)).toBe("stdout:two\n");
  await handler.remove(one, signal());
  await handler.remove(two, signal());
  expect(host.exits.get(one.id)).toHaveLength(1);
});

test("exec gives output, exit code and stdin to its end", async () => {
  const ref = await run(["sleep", "1000"]);
  const out = new PassThrough();
  const err = new PassThrough();
  const stdin = new PassThrough();
  const exec = await handler.exec(
    ref,
    {
      process: { ...host.base, args: ["sh", "-c", "cat; echo done >&2; exit 9"] },
      stdin,
      stdout: out,
      stderr: err,
      tty: false,
    },
    signal(),
  );
  stdin.end("hello\n");
  expect(await exec.exited).toBe(9);
  expect(out.read()?.toString()).toBe("hello\n");
  expect(err.read()?.toString()).toBe("done\n");
  await handler.kill(ref, 9, false, signal());
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 137 });
  await handler.remove(ref, signal());
});
