import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { connectSocket } from "@bulkhead/lib/ttrpc/socket.ts";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { ContainerRef, Handler, SandboxRef } from "../handler.ts";
import { connectShim } from "./connection.ts";
import type { Fault } from "./fake-shim.ts";
import { processesIn } from "./processes.ts";
import { openTestHost, type Shell, type TestHost } from "./test-host.ts";

let host: TestHost;
beforeAll(async () => {
  host = await openTestHost("fake");
});
afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
});

const signal = () => AbortSignal.timeout(30_000);
const alive = (pid: number): boolean => {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};

/** Those that a launch takes its whole deadline for. */
const slow = new Set<Fault>(["start-hangs", "deaf"]);

/** A daemon whose shims do what the words in `faults` say; short deadlines. */
const openDaemon = async (faults: Fault[], env: Record<string, string> = {}) => {
  const config: Partial<ShimHandlerConfig> = {
    name: `fake-${faults.join("-")}`,
    env: { FAKE_SHIM: faults.join(" "), ...env },
    deadlines: { create: faults.some((fault) => slow.has(fault)) ? 4 : 30, start: 5, stop: 3 },
  };
  const opened = await host.openHandler(config);
  const { handler } = opened;
  const launch = host.newPod();
  const runPod = async (pod = launch): Promise<SandboxRef> => {
    const state = await handler.runSandbox(pod, signal());
    return { id: pod.id, stateDir: pod.stateDir, state: JSON.parse(JSON.stringify(state)) };
  };
  return {
    handler,
    launch,
    runPod,
    /** As the daemon that comes after this one was killed. */
    again: () => host.openHandler(config),
    bundle: `${launch.stateDir}/${launch.id}`,
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  };
};

const run = async (
  handler: Handler,
  pod: SandboxRef,
  args: string[],
  io: Shell = {},
): Promise<ContainerRef> => {
  const launch = host.newContainer(pod, args, io);
  const ref = host.refOf(launch, await handler.create(launch, signal()));
  await handler.start(ref, signal());
  return ref;
};

const pidOf = (ref: ContainerRef): number =>
  Number(readFileSync(`${ref.stateDir}/${ref.id}/fake.pid`, "utf8"));

/** Takes a pod down, whatever its shim does, and sees that nothing is left. */
const removeAll = async (handler: Handler, pod: SandboxRef, containers: ContainerRef[] = []) => {
  await handler.stopSandbox(pod, signal());
  for (const ref of containers) await handler.remove(ref, signal());
  await handler.removeSandbox(pod, signal());
  expect(processesIn(`${pod.stateDir}/${pod.id}`)).toEqual([]);
  for (const { stateDir } of [pod, ...containers]) expect(readdirSync(stateDir)).toEqual([]);
};

describe("a shim is launched, and a container runs in it to its end,", () => {
  test.each<[string, string, string, string, Fault[]?]>([
    ["that takes BootstrapParams and answers by protobuf, task.v3", "bootstrap", "protobuf", "3"],
    ["that takes the runtime's options and answers in JSON, task.v2", "options", "json", "2"],
    ["that takes nothing and answers by a bare address, task.v2", "empty", "plain", "2"],
    ["that takes BootstrapParams in JSON", "bootstrap-json", "json", "3"],
    ["that speaks gRPC, task.v3", "bootstrap", "grpc", "3", ["grpc"]],
    ["that speaks gRPC, task.v2", "options", "grpc", "2", ["grpc"]],
    ["that serves another version of the task service than its answer says", "bootstrap", "plain", "3"],
  ])("%s", async (_title, takes, reply, version, faults = []) => {
    await using daemon = await openDaemon(faults, {
      FAKE_TAKES: takes,
      FAKE_REPLY: reply,
      FAKE_VERSION: version,
    });
    const { handler } = daemon;
    const pod = await daemon.runPod();
    const ref = await run(handler, pod, ["sh", "-c", "echo here; exit 4"]);
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 4 });
    expect(readFileSync(ref.logPath, "utf8")).toMatch(/ stdout F here\n$/);
    await removeAll(handler, pod, [ref]);
  });
});

describe("a pod whose shim does not come up fails with the reason and leaves nothing:", () => {
  test.each<[string, Fault[], Record<string, string>, RegExp]>([
    ["it dies at start", ["start-fails"], {}, /the fake is broken/],
    ["it takes no form of stdin that there is", [], { FAKE_TAKES: "psalms" }, /takes psalms, not bootstrap/],
    ["its start does not end", ["start-hangs"], {}, /did not end .* start" in time/],
    ["nobody serves at its address", ["no-server"], {}, /Cannot connect to/],
    ["it answers no address", [], { FAKE_REPLY: "nonsense" }, /no address/],
    ["it speaks another protocol", [], { FAKE_REPLY: "soap" }, /speaks "soap"; only ttrpc and grpc/],
    ["it says gRPC and speaks ttrpc", [], { FAKE_REPLY: "grpc" }, /connection to .* closed|no gRPC/],
    ["it speaks gRPC and does not answer", ["deaf", "grpc"], { FAKE_REPLY: "grpc" }, /Connect: no answer/],
    ["it listens and does not answer", ["deaf"], {}, /Connect: no answer/],
  ])("%s", async (_title, faults, env, message) => {
    await using daemon = await openDaemon(faults, env);
    await expect(daemon.handler.runSandbox(daemon.launch, signal())).rejects.toThrow(message);
    expect(readdirSync(daemon.launch.stateDir)).toEqual([]);
    expect(processesIn(daemon.bundle)).toEqual([]);
  });
});

describe("what a shim logged as an error is told with its failure,", () => {
  const answer = { FAKE_ANSWER: "cannot create" };
  const error = (text: string) => `time="2026-11-28T13:40:48Z" level=error msg="${text}" pid=7\n`;
  const quiet = 'level=info msg="all is well"\n';
  const told = "Create: cannot create; the shim's last error: ";

  test.each<[string, Record<string, string>, string]>([
    ["the last of several", { FAKE_LOG: error("first") + error("no memory") + quiet }, `${told}no memory`],
    ["without what a terminal obeys", { FAKE_LOG: error("\u001b[2J\u0007gone") }, `${told}[2J gone`],
    ["but not twice", { FAKE_LOG: error("cannot create") }, "Create: cannot create"],
    ["and nothing else is", { FAKE_LOG: quiet }, "Create: cannot create"],
  ])("%s", async (_title, env, message) => {
    await using daemon = await openDaemon(["pod-fails"], { ...answer, ...env });
    await expect(daemon.handler.runSandbox(daemon.launch, signal())).rejects.toMatchObject({
      ...{ code: "unknown", message },
    });
    expect(readdirSync(daemon.launch.stateDir)).toEqual([]);
  });

  test("also of a container's, and not with the next one's", async () => {
    await using daemon = await openDaemon(["create-fails"], { ...answer, FAKE_LOG: error("no disk") });
    const { handler } = daemon;
    const pod = await daemon.runPod();
    const create = () => handler.create(host.newContainer(pod, ["true"]), signal());
    await expect(create()).rejects.toMatchObject({ message: `${told}no disk` });
    await expect(create()).rejects.toMatchObject({ message: "Create: cannot create" });
    await removeAll(handler, pod);
  });
});

test("a Create that is answered too late fails, and what it made late is removed", async () => {
  await using daemon = await openDaemon(["late-create"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const launch = host.newContainer(pod, ["sleep", "1000"]);
  const impatient = AbortSignal.timeout(500);
  await expect(handler.create(launch, impatient)).rejects.toMatchObject({ code: "deadline-exceeded" });
  // It comes after two seconds, and goes again.
  await sleep(4500);
  const { address } = pod.state as { address: string };
  const shim = await connectShim({ address, version: 3 }, pod.id, signal());
  await expect(shim.task.state({ id: launch.id })).rejects.toMatchObject({ code: "not-found" });
  shim.connection.close();
  await expect(handler.start(host.refOf(launch, {}), signal())).rejects.toMatchObject({ code: "not-found" });
  const patient = await run(handler, pod, ["true"]);
  expect(await host.exitOf(patient.id)).toMatchObject({ code: 0 });
  await removeAll(handler, pod, [patient]);
});

test("a shim that names process 1 as its own is not believed: nobody else's process is accounted or killed", async () => {
  await using daemon = await openDaemon(["wrong-pid"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  expect(pod.state).not.toHaveProperty("process");
  expect((pod.state.shim as { pid: number }).pid).toBe(processesIn(daemon.bundle)[0]?.pid);
  const ref = await run(handler, pod, ["true"]);
  expect(ref.state).not.toHaveProperty("cgroups");
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 0 });
  expect(await handler.sandboxStats(pod, signal())).toBeUndefined();
  await removeAll(handler, pod, [ref]);
});

test("an exit event without an answer of Wait makes us ask; State's word counts", async () => {
  await using daemon = await openDaemon(["no-wait", "exit-event"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sh", "-c", "exit 6"]);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 6 });
  await removeAll(handler, pod, [ref]);
});

test("an exit event for a container that runs is no exit", async () => {
  await using daemon = await openDaemon(["false-exit"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "2.5"]);
  await sleep(1800);
  expect(host.exits.has(ref.id)).toBe(false);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 0 });
  await removeAll(handler, pod, [ref]);
});

test("a Wait that fails is asked again; a container is not called dead for it", async () => {
  await using daemon = await openDaemon(["wait-fails"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sh", "-c", "sleep 1; exit 5"]);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 5 });
  await removeAll(handler, pod, [ref]);
});

test("a shim of before the events socket reports out of memory by the program of -publish-binary", async () => {
  await using daemon = await openDaemon(["publishes-oom"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sh", "-c", "sleep 0.5; kill -9 $$"]);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 137, oomKilled: true });
  await removeAll(handler, pod, [ref]);
});

test.each<[string, Fault[]]>([
  ["does not answer Kill", ["kill-hangs"]],
  ["answers Kill and kills nothing", ["kill-lies"]],
  ["does not answer Kill, nor ends its delete", ["kill-hangs", "delete-hangs"]],
  ["refuses Kill", ["kill-refuses"]],
])("a container whose shim %s is ended with its shim", async (_title, faults) => {
  await using daemon = await openDaemon(faults);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  const pid = pidOf(ref);
  // As the CRI does: again until it has ended.
  while (!host.exits.has(ref.id)) {
    await handler.kill(ref, 9, true, signal());
    await sleep(300);
  }
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  expect(host.sandboxExits).toContain(pod.id);
  if (!faults.includes("delete-hangs")) expect(alive(pid)).toBe(false);
  else if (alive(pid)) process.kill(pid, "SIGKILL");
  await removeAll(handler, pod, [ref]);
});

test("a signal that a shim dies of has been sent, and ends its container", async () => {
  await using daemon = await openDaemon(["dies-at-kill"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  const pid = pidOf(ref);
  await handler.kill(ref, 15, false, signal());
  await host.until(() => host.sandboxExits.includes(pod.id), "the sandbox's end");
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  expect(alive(pid)).toBe(false);
  await removeAll(handler, pod, [ref]);
});

test("a shim that answers Kill late is not given up when the container has ended by it", async () => {
  await using daemon = await openDaemon(["late-kill"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  await handler.kill(ref, 9, true, signal());
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 137 });
  const next = await run(handler, pod, ["sh", "-c", "exit 4"]);
  expect(await host.exitOf(next.id)).toMatchObject({ code: 4 });
  expect(host.sandboxExits).not.toContain(pod.id);
  await removeAll(handler, pod, [ref, next]);
});

test("a container whose shim never says that it has ended is found ended when it is to be", async () => {
  await using daemon = await openDaemon(["no-wait"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sh", "-c", "exit 6"]);
  await vi.waitFor(() => expect(alive(pidOf(ref))).toBe(false), 20_000);
  await handler.kill(ref, 9, true, signal());
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 6 });
  const stays = await run(handler, pod, ["sleep", "1000"]);
  await removeAll(handler, pod, [ref, stays]);
});

test("execs that a shim never says the end of take no descriptor once they were killed", async () => {
  await using daemon = await openDaemon(["endless-exec"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  const before = readdirSync("/proc/self/fd").length;
  const execs = await Promise.all(
    Array.from({ length: 20 }, () => handler.exec(ref, { process: host.base, tty: false }, signal())),
  );
  expect(readdirSync("/proc/self/fd").length).toBeGreaterThan(before + 20);
  for (const exec of execs) await exec.kill();
  for (const exec of execs) await expect(exec.exited).rejects.toMatchObject({ code: "deadline-exceeded" });
  await vi.waitFor(() => expect(readdirSync("/proc/self/fd").length).toBeLessThan(before + 10), 20_000);
  expect(readdirSync(ref.stateDir).filter((name) => name.startsWith("exec-"))).toEqual([]);
  await removeAll(handler, pod, [ref]);
});

test("an exec that a hung shim does not take fails when its caller's time is over, and leaves nothing here", async () => {
  await using daemon = await openDaemon(["endless-exec"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  for (const { pid } of processesIn(daemon.bundle)) process.kill(pid, "SIGSTOP");
  const before = readdirSync("/proc/self/fd").length;
  const begun = performance.now();
  const execs = Array.from({ length: 5 }, () =>
    handler.exec(ref, { process: host.base, tty: false }, AbortSignal.timeout(500)),
  );
  for (const exec of execs) await expect(exec).rejects.toMatchObject({ code: "deadline-exceeded" });
  // The shim has twice ten seconds to undo it, which nobody here waits for.
  expect(performance.now() - begun).toBeLessThan(18_000);
  expect(readdirSync("/proc/self/fd").length).toBeLessThan(before + 10);
  expect(readdirSync(ref.stateDir).filter((name) => name.startsWith("exec-"))).toEqual([]);
  await removeAll(handler, pod, [ref]);
});

test("shims that flood us with events and with their logs cost no other pod its life, and us no memory", async () => {
  await using daemon = await openDaemon(["floods-events", "floods-log"]);
  const { handler } = daemon;
  const timers = vi.spyOn(globalThis, "setTimeout");
  const [before, begun] = [process.memoryUsage().rss, performance.now()];
  const [loud, other] = [await daemon.runPod(), await daemon.runPod(host.newPod())];
  const refs = [await run(handler, loud, ["sleep", "1000"])];
  for (let turn = 0; turn < 3; turn++) {
    const ref = await run(handler, other, ["sh", "-c", "sleep 0.5; exit 4"]);
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 4 });
    await handler.remove(ref, signal());
    await sleep(500);
  }
  expect(process.memoryUsage().rss - before).toBeLessThan(200 << 20);
  // A MiB a second of each, and what was in sockets and pipes.
  const mostBytes = ((performance.now() - begun) / 1000 + 3) * (1 << 20);
  for (const name of ["events", "log"]) {
    const taken = Number(readFileSync(`${daemon.bundle}/${name}.taken`, "utf8"));
    expect(taken).toBeGreaterThan(0);
    expect(taken).toBeLessThan(mostBytes);
  }
  // One question a second of each container, however many events name it.
  expect(timers.mock.calls.filter(([, ms]) => ms === 1000).length).toBeLessThan(mostBytes / (1 << 18));
  timers.mockRestore();
  expect(host.exits.has(refs[0]?.id ?? "")).toBe(false);
  await removeAll(handler, loud, refs);
  await removeAll(handler, other);
});

test("containers that write without end cost no other pod its life, and us no memory", async () => {
  await using daemon = await openDaemon([]);
  const { handler } = daemon;
  const before = process.memoryUsage().rss;
  const [loud, other] = [await daemon.runPod(), await daemon.runPod(host.newPod())];
  const refs: ContainerRef[] = [];
  for (let count = 0; count < 4; count++)
    refs.push(await run(handler, loud, ["sh", "-c", "exec yes"], { logPath: "/dev/null" }));
  const ref = await run(handler, other, ["sh", "-c", "echo here; exit 4"]);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 4 });
  expect(readFileSync(ref.logPath, "utf8")).toMatch(/ stdout F here\n$/);
  expect(process.memoryUsage().rss - before).toBeLessThan(200 << 20);
  await removeAll(handler, loud, refs);
  await removeAll(handler, other, [ref]);
});

test("a shim that closes its ends of the output early, or never reads the input, is waited for by nobody", async () => {
  await using daemon = await openDaemon(["closes-stdio", "holds-stdin"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const script = "echo here; exec >/dev/null 2>&1; sleep 1; exit 5";
  const ref = await run(handler, pod, ["sh", "-c", script], { stdin: true });
  const session = await handler.attach(ref, signal());
  const piece = Buffer.alloc(64 << 10);
  let written = 0;
  while (session.stdin?.write(piece)) written += piece.length;
  expect(written).toBeLessThan(1 << 20);
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 5 });
  expect(readFileSync(ref.logPath, "utf8")).toMatch(/ stdout F here\n$/);
  session.close();
  await removeAll(handler, pod, [ref]);
});

test("input for a container whose shim has not opened it is refused in time", async () => {
  await using daemon = await openDaemon([]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"], { stdin: true });
  await expect(handler.attach(ref, signal())).rejects.toMatchObject({ code: "deadline-exceeded" });
  await removeAll(handler, pod, [ref]);
});

test("a pod whose shim answers nothing any more is stopped within its deadline", async () => {
  await using daemon = await openDaemon(["kill-hangs"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  const pid = pidOf(ref);
  const begun = performance.now();
  await removeAll(handler, pod, [ref]);
  expect(performance.now() - begun).toBeLessThan(12_000);
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  expect(alive(pid)).toBe(false);
});

test("bytes that are no frame are the end of the connection: the pod is reported lost, and nothing runs on", async () => {
  await using daemon = await openDaemon(["garbage"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  const pid = pidOf(ref);
  await expect(handler.stats(ref, signal())).rejects.toThrow(/no server sends/);
  await host.until(() => host.sandboxExits.includes(pod.id), "the sandbox's end");
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  expect(alive(pid)).toBe(false);
  await removeAll(handler, pod, [ref]);
});

test("a frame over the limit fails its call alone", async () => {
  await using daemon = await openDaemon(["huge"]);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sh", "-c", "sleep 1; exit 3"]);
  await expect(handler.stats(ref, signal())).rejects.toMatchObject({ code: "resource-exhausted" });
  expect(await host.exitOf(ref.id)).toMatchObject({ code: 3 });
  await removeAll(handler, pod, [ref]);
});

test.each<[string, Fault[], Record<string, string>]>([
  ["a delete that prints nonsense has deleted all the same", ["delete-garbage"], {}],
  ["a shim of gRPC that dies ends its pod", ["grpc"], { FAKE_REPLY: "grpc" }],
])("%s", async (_, faults, env) => {
  await using daemon = await openDaemon(faults, env);
  const { handler } = daemon;
  const pod = await daemon.runPod();
  const ref = await run(handler, pod, ["sleep", "1000"]);
  process.kill(processesIn(daemon.bundle)[0]?.pid ?? 0, "SIGKILL");
  await host.until(() => host.sandboxExits.includes(pod.id), "the sandbox's end");
  expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  await removeAll(handler, pod, [ref]);
});

/** A pod with a container that ends with 5 when `end` is called, whose shim hangs when its daemon is gone. */
const hang = async () => {
  await using daemon = await openDaemon([]);
  const pod = await daemon.runPod();
  const file = `${host.dir}/${pod.id}.end`;
  const ref = await run(daemon.handler, pod, [
    "sh",
    "-c",
    `until [ -e ${file} ]; do sleep 0.1; done; exit 5`,
  ]);
  const shim = processesIn(daemon.bundle)[0]?.pid ?? 0;
  process.kill(shim, "SIGSTOP");
  return { ...daemon, pod, ref, shim, end: () => writeFileSync(file, "") };
};

test("a shim that lives and does not answer at the daemon's start costs nothing: it is asked again, and no code is made up", async () => {
  const { again, pod, ref, shim, end } = await hang();
  const silent = { code: "deadline-exceeded" };
  for (const isLong of [false, true]) {
    // As it is in the end: nobody takes connections, and the queue is full.
    if (isLong) await fillQueue(String(pod.state.address));
    await using daemon = await again();
    const { handler } = daemon;
    for (let tries = 0; tries < 2; tries++)
      await expect(handler.recover(pod, [ref], signal())).rejects.toMatchObject(silent);
    const said = `Cannot reach pod ${pod.id}: its shim has not answered since the daemon's start`;
    const exec = { process: host.base, tty: false };
    await expect(handler.exec(ref, exec, signal())).rejects.toThrow(said);
    await expect(handler.stats(ref, signal())).rejects.toMatchObject(silent);
    // Of one that has ended, as kubelet asks for them: not worth the others.
    await expect(handler.remove(ref, signal())).rejects.toMatchObject(silent);
    await expect(handler.stopSandbox(pod, signal())).rejects.toMatchObject(silent);
  }
  expect(alive(shim)).toBe(true);
  expect(alive(pidOf(ref))).toBe(true);
  end();
  await using daemon = await again();
  const { handler } = daemon;
  await expect(handler.recover(pod, [ref], signal())).rejects.toMatchObject(silent);
  process.kill(shim, "SIGCONT");
  // Its queue may be full for a moment yet.
  const { sandboxAlive, containers } = await vi.waitFor(() => handler.recover(pod, [ref], signal()), 50_000);
  expect(sandboxAlive).toBe(true);
  const now = containers.get(ref.id);
  expect(now?.state === "exited" ? now.exit : await host.exitOf(ref.id)).toMatchObject({ code: 5 });
  expect(host.sandboxExits).not.toContain(pod.id);
  await removeAll(handler, pod, [ref]);
});

test("what outlived containers and holds their pipes is waited for once, however many they are, when the daemon starts", async () => {
  const daemon = await openDaemon([]);
  const pod = await daemon.runPod();
  const refs: ContainerRef[] = [];
  for (let count = 0; count < 14; count++)
    refs.push(await run(daemon.handler, pod, ["sh", "-c", "sleep 1000 & sleep 2; echo bye; exit 3"]));
  await daemon[Symbol.asyncDispose]();
  await vi.waitFor(() => expect(refs.some((ref) => alive(pidOf(ref)))).toBe(false), 20_000);
  await using next = await daemon.again();
  const { containers } = await next.handler.recover(pod, refs, signal());
  for (const ref of refs) {
    expect(containers.get(ref.id)).toMatchObject({ state: "exited", exit: { code: 3 } });
    expect(readFileSync(ref.logPath, "utf8")).toMatch(/ stdout F bye\n$/);
    process.kill(-pidOf(ref), "SIGKILL");
  }
  await removeAll(next.handler, pod, refs);
});

test("what a container writes is logged whole and once while its shim is stopped, over a restart of the daemon too", async () => {
  const daemon = await openDaemon([]);
  const pod = await daemon.runPod();
  const file = `${host.dir}/${pod.id}`;
  // Half a MiB in each of three parts.
  const line = "x".repeat(57);
  const part = `for i in $(seq 1 8192); do echo "$1 $i ${line}"; done`;
  const ref = await run(daemon.handler, pod, [
    "sh",
    "-c",
    `part() { until [ -e ${file}.$1 ]; do sleep 0.05; done; ${part}; }; part 1; part 2; part 3; exit 5`,
  ]);
  const lines = (path = ref.logPath) =>
    readFileSync(path, "utf8")
      .split("\n")
      .map((each) => each.split(" ").slice(1, 5).join(" "));
  const expected = (name: string) => Array.from({ length: 8192 }, (_, n) => `stdout F ${name} ${n + 1}`);
  const shim = processesIn(daemon.bundle)[0]?.pid ?? 0;
  process.kill(shim, "SIGSTOP");
  writeFileSync(`${file}.1`, "");
  await vi.waitFor(() => expect(lines().at(-2)).toBe("stdout F 1 8192"), 50_000);
  await daemon[Symbol.asyncDispose]();
  writeFileSync(`${file}.2`, "");
  // Until its pipe is full.
  await sleep(200);
  await using next = await daemon.again();
  const silent = { code: "deadline-exceeded" };
  await expect(next.handler.recover(pod, [ref], signal())).rejects.toMatchObject(silent);
  await vi.waitFor(() => expect(lines().at(-2)).toBe("stdout F 2 8192"), 50_000);
  // kubelet rotates it meanwhile.
  renameSync(ref.logPath, `${ref.logPath}.1`);
  await next.handler.reopenLog(ref, signal());
  await expect(next.handler.recover(pod, [ref], signal())).rejects.toMatchObject(silent);
  writeFileSync(`${file}.3`, "");
  await vi.waitFor(() => expect(lines().at(-2)).toBe("stdout F 3 8192"), 50_000);
  process.kill(shim, "SIGCONT");
  const { containers } = await vi.waitFor(() => next.handler.recover(pod, [ref], signal()), 50_000);
  const now = containers.get(ref.id);
  expect(now?.state === "exited" ? now.exit : await host.exitOf(ref.id)).toMatchObject({ code: 5 });
  expect(lines(`${ref.logPath}.1`)).toEqual([...expected("1"), ...expected("2"), ""]);
  expect(lines()).toEqual([...expected("3"), ""]);
  await removeAll(next.handler, pod, [ref]);
  expect(existsSync(`${ref.stateDir}/io`)).toBe(false);
});

test("a pod whose shim lives and does not answer is ended when it is to be: shim, containers and all", async () => {
  const { again, pod, ref, shim } = await hang();
  const pid = pidOf(ref);
  await using daemon = await again();
  const { handler } = daemon;
  await expect(handler.recover(pod, [ref], signal())).rejects.toMatchObject({ code: "deadline-exceeded" });
  await fillQueue(String(pod.state.address));
  const { sandboxAlive, containers } = await handler.recover(pod, [ref], signal(), true);
  expect(sandboxAlive).toBe(false);
  expect(containers.get(ref.id)).toMatchObject({ state: "exited", exit: { code: 137 } });
  expect(alive(shim)).toBe(false);
  expect(alive(pid)).toBe(false);
  await removeAll(handler, pod, [ref]);
});

/** Connects until the server's queue takes no more. */
const fillQueue = async (address: string): Promise<void> => {
  await using stack = new AsyncDisposableStack();
  for (;;) {
    const socket = await connectSocket(address, signal()).catch(() => undefined);
    if (socket === undefined) return;
    socket.on("error", () => {});
    stack.defer(() => void socket.destroy());
  }
};
