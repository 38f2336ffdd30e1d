import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PassThrough, type Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ContainerRef, Handler, SandboxRef } from "../handler.ts";
import { connectShim } from "./connection.ts";
import { openTestHost, type Shell, type TestHost } from "./test-host.ts";

const signal = () => AbortSignal.timeout(60_000);
const alive = (pid: unknown): boolean => {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};
const readUntil = async (stream: Readable, text: string): Promise<string> => {
  let all = "";
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    all += chunk;
    if (all.includes(text)) return all;
  }
  return all;
};
const pidOf = (state: Record<string, unknown>, key: string) => (state[key] as { pid: number }).pid;

describe.each(["gvisor", "runc", "runc-1.6"] as const)("%s behind its shim", (kind) => {
  let host: TestHost;
  let handler: Handler;
  let pod: SandboxRef;
  let life: AsyncDisposable;

  const open = async () => {
    const opened = await host.openHandler();
    handler = opened.handler;
    life = opened;
  };
  /** What a restart of the daemon is to the handler: another one, and only the records are left. */
  const restart = async (away: () => Promise<void> = async () => {}) => {
    await life[Symbol.asyncDispose]();
    await away();
    await open();
  };
  const runPod = async (): Promise<SandboxRef> => {
    const launch = host.newPod();
    const state = await handler.runSandbox(launch, signal());
    return { id: launch.id, stateDir: launch.stateDir, state: JSON.parse(JSON.stringify(state)) };
  };
  const create = async (args: string[], io: Shell = {}, sandbox = pod): Promise<ContainerRef> => {
    const launch = host.newContainer(sandbox, args, io);
    return host.refOf(launch, await handler.create(launch, signal()));
  };
  const run = async (args: string[], io: Shell = {}, sandbox = pod): Promise<ContainerRef> => {
    const ref = await create(args, io, sandbox);
    await handler.start(ref, signal());
    return ref;
  };
  const removePod = async (sandbox: SandboxRef) => {
    await handler.stopSandbox(sandbox, signal());
    await handler.removeSandbox(sandbox, signal());
  };
  const end = async (ref: ContainerRef) => {
    await handler.kill(ref, 9, true, signal());
    await host.exitOf(ref.id);
    await handler.remove(ref, signal());
  };
  /** Lines of the CRI log without their times. */
  const logOf = (ref: ContainerRef) =>
    readFileSync(ref.logPath, "utf8").replaceAll(/^\S+ (\w+) (F|P) /gm, "$1 $2:");
  const exec = async (ref: ContainerRef, args: string[], input?: string) => {
    const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
    const process = { ...host.base, args };
    const io = { ...(input === undefined ? {} : { stdin }), stdout, stderr };
    const running = await handler.exec(ref, { process, ...io, tty: false }, signal());
    stdin.end(input);
    const [outText, errText] = [stdout, stderr].map((stream) => text(stream));
    const code = await running.exited;
    stdout.end();
    stderr.end();
    return { code, out: await outText, err: await errText };
  };

  beforeAll(async () => {
    host = await openTestHost(kind);
    await open();
    pod = await runPod();
  });
  afterAll(async () => {
    if (pod) await removePod(pod);
    await life[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
  });

  test("two containers of a pod share one shim, log, and exit with their own codes, each reported once", async () => {
    const one = await run(["sh", "-c", "uname -r; cat /proc/version; echo oops >&2; exit 3"]);
    const two = await run(["sh", "-c", "echo two"]);
    expect(await host.exitOf(one.id)).toMatchObject({ code: 3, oomKilled: false });
    expect(await host.exitOf(two.id)).toMatchObject({ code: 0, oomKilled: false });
    expect(logOf(one)).toContain("stderr F:oops\n");
    expect(logOf(two)).toBe("stdout F:two\n");
    // gVisor's kernel is not this machine's.
    expect(logOf(one).includes(readFileSync("/proc/version", "utf8").trim())).toBe(kind !== "gvisor");
    await handler.remove(one, signal());
    await handler.remove(two, signal());
    await handler.remove(two, signal());
    expect(host.exits.get(one.id)).toHaveLength(1);
    expect(existsSync(join(one.stateDir, one.id))).toBe(false);
    expect(alive(pidOf(one.state, "keeper"))).toBe(false);
  });

  test("a signal ends a container with 128 and its number; killing it again succeeds", async () => {
    const polite = await run(["sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"]);
    const ref = await run(["sleep", "1000"]);
    while (!existsSync(polite.logPath)) await sleep(20);
    await handler.kill(polite, 15, false, signal());
    expect(await host.exitOf(polite.id)).toMatchObject({ code: 7 });
    await handler.kill(ref, 9, false, signal());
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 137 });
    await handler.kill(ref, 9, true, signal());
    await handler.remove(ref, signal());
    await handler.remove(polite, signal());
  });

  test("a container that never started can be removed", async () => {
    const ref = await create(["sleep", "1000"]);
    await handler.remove(ref, signal());
    expect(existsSync(join(ref.stateDir, "io"))).toBe(false);
  });

  test("a command that is not there fails at create or start and says so", async () => {
    const launch = host.newContainer(pod, ["/no/such/command"]);
    let state = {};
    const attempt = async () => {
      state = await handler.create(launch, signal());
      await handler.start(host.refOf(launch, state), signal());
    };
    await expect(attempt()).rejects.toThrow(/no such|not found|no\/such/i);
    await handler.remove(host.refOf(launch, state), signal());
    expect(readdirSync(launch.stateDir)).toEqual([]);
  });

  test("exec gives output, exit code, and stdin to its end", async () => {
    const ref = await run(["sleep", "1000"]);
    expect(await exec(ref, ["sh", "-c", "exit 0"])).toEqual({ code: 0, out: "", err: "" });
    expect(await exec(ref, ["sh", "-c", "cat; echo done >&2; exit 9"], "hello\n")).toEqual({
      code: 9,
      out: "hello\n",
      err: "done\n",
    });
    const much = "x".repeat(300_000);
    const { code, out } = await exec(ref, ["cat"], much);
    expect([code, out?.length]).toEqual([0, much.length]);
    await expect(exec(ref, ["/no/such/command"])).rejects.toThrow();
    expect(readdirSync(ref.stateDir).filter((name) => name.startsWith("exec-"))).toEqual([]);
    await end(ref);
  });

  test("exec with a terminal takes input and window sizes, and can be killed", async () => {
    const ref = await run(["sleep", "1000"]);
    const [stdin, stdout] = [new PassThrough(), new PassThrough()];
    const process = { ...host.base, args: ["sh"], terminal: true };
    const running = await handler.exec(ref, { process, stdin, stdout, tty: true }, signal());
    await running.resize(91, 17);
    stdin.write("stty size; echo rea''dy\n");
    const seen = await readUntil(stdout, "ready\r\n");
    expect(seen).toContain("17 91\r\n");
    await running.kill();
    expect(await running.exited).toBe(137);
    await end(ref);
  });

  test("attach shows output from now on, gives input, and its end closes stdin with stdinOnce", async () => {
    const script = "echo before; while read line; do echo got $line; done; echo eof";
    const ref = await create(["sh", "-c", script], { stdin: true, stdinOnce: true });
    await handler.start(ref, signal());
    const session = await handler.attach(ref, signal());
    const second = await handler.attach(ref, signal());
    session.stdin?.write("one\n");
    await readUntil(session.stdout, "got one\n");
    await readUntil(second.stdout, "got one\n");
    second.close();
    // The first that leaves closes it.
    session.stdin?.end();
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 0 });
    expect(logOf(ref)).toBe("stdout F:before\nstdout F:got one\nstdout F:eof\n");
    await expect(handler.attach(ref, signal())).rejects.toMatchObject({ code: "failed-precondition" });
    await handler.remove(ref, signal());
  });

  test("a container with a terminal is attached to, resized, and logged", async () => {
    const ref = await create(["sh"], { tty: true, stdin: true });
    await handler.start(ref, signal());
    const session = await handler.attach(ref, signal());
    await session.resize(100, 30);
    session.stdin?.write("stty size; echo rea''dy\n");
    expect(await readUntil(session.stdout, "ready\r\n")).toContain("30 100");
    session.stdin?.write("exit 4\n");
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 4 });
    expect(logOf(ref)).toContain("30 100");
    await handler.remove(ref, signal());
  });

  test("much output arrives whole", async () => {
    const ref = await run(["sh", "-c", "yes 0123456789abcdef | head -n 300000"]);
    await host.exitOf(ref.id);
    const expected = createHash("sha256").update("stdout F:0123456789abcdef\n".repeat(300_000)).digest("hex");
    expect(createHash("sha256").update(logOf(ref)).digest("hex")).toBe(expected);
    await handler.remove(ref, signal());
  });

  test("a log that was rotated away is begun anew, and every line is in one of the two", async () => {
    const ref = await run(["sh", "-c", "echo old; read x; echo new"], { stdin: true });
    while (!existsSync(ref.logPath) || logOf(ref) === "") await sleep(20);
    renameSync(ref.logPath, `${ref.logPath}.1`);
    await handler.reopenLog(ref, signal());
    expect(logOf(ref)).toBe("");
    const session = await handler.attach(ref, signal());
    session.stdin?.write("go\n");
    await host.exitOf(ref.id);
    session.close();
    expect(readFileSync(`${ref.logPath}.1`, "utf8")).toMatch(/ stdout F old\n$/);
    expect(logOf(ref)).toBe("stdout F:new\n");
    await handler.remove(ref, signal());
  });

  test("stats say what a container and its pod use, and limits can be changed", async () => {
    const ref = await run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000"]);
    await sleep(500);
    const usage = await handler.stats(ref, signal());
    expect(usage?.cpuNanos).toBeGreaterThan(0n);
    expect(usage?.memoryUsage).toBeGreaterThan(0n);
    const whole = await handler.sandboxStats(pod, signal());
    expect(whole?.memoryUsage).toBeGreaterThan(0n);
    await handler.update(ref, { memory: { limit: 128 << 20 } }, signal());
    if (kind !== "gvisor") expect((await handler.stats(ref, signal()))?.memoryLimit).toBe(128n << 20n);
    await end(ref);
  });

  test("a new handler finds what ran on, and what ended meanwhile with its code, time and last words", async () => {
    const goes = await run([
      "sh",
      "-c",
      "echo first; sleep 1.5; echo last words; printf 'no newline'; exit 5",
    ]);
    const stays = await run(["sh", "-c", "echo up; sleep 9; echo still; exit 6"]);
    const made = await create(["sleep", "1000"]);
    await restart(() => sleep(3000));
    const before = BigInt(Date.now()) * 1_000_000n;
    const found = await handler.recover(pod, [goes, stays, made], signal());
    expect(found.sandboxAlive).toBe(true);
    const gone = found.containers.get(goes.id);
    expect(gone).toMatchObject({ state: "exited", exit: { code: 5, oomKilled: false } });
    if (gone?.state === "exited") expect(gone.exit.finishedAt < before - 500_000_000n).toBe(true);
    expect(logOf(goes)).toBe("stdout F:first\nstdout F:last words\nstdout P:no newline\n");
    expect(found.containers.get(stays.id)).toEqual({ state: "running" });
    expect(found.containers.get(made.id)).toEqual({ state: "created" });
    expect(await host.exitOf(stays.id)).toMatchObject({ code: 6 });
    expect(logOf(stays)).toBe("stdout F:up\nstdout F:still\n");
    expect(host.exits.has(goes.id)).toBe(false);
    // And exec works through the taken-up connection.
    await handler.start(made, signal());
    expect(await exec(made, ["echo", "hi"])).toMatchObject({ code: 0, out: "hi\n" });
    for (const ref of [goes, stays]) await handler.remove(ref, signal());
    await end(made);
  });

  test("a container that somebody paused is running to a new handler, goes on when resumed, and can be killed", async () => {
    const ref = await run(["sleep", "1000"]);
    const { address, version } = pod.state as { address: string; version: number };
    const shim = await connectShim({ address, version }, pod.id, signal());
    await shim.task.pause({ id: ref.id });
    expect(await shim.task.state({ id: ref.id })).toMatchObject({ status: Status.PAUSED });
    await restart();
    const found = await handler.recover(pod, [ref], signal());
    expect(found).toMatchObject({ sandboxAlive: true });
    expect(found.containers.get(ref.id)).toEqual({ state: "running" });
    await shim.task.resume({ id: ref.id });
    expect(await exec(ref, ["echo", "on"])).toMatchObject({ code: 0, out: "on\n" });
    await shim.task.pause({ id: ref.id });
    shim.connection.close();
    await end(ref);
    expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
  });

  test("a writer waits while the daemon is away, and no line is lost or comes twice", async () => {
    const ref = await run(["sh", "-c", "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done"]);
    await sleep(20);
    await restart(() => sleep(500));
    const found = await handler.recover(pod, [ref], signal());
    if (found.containers.get(ref.id)?.state === "running") await host.exitOf(ref.id);
    const lines = logOf(ref).trimEnd().split("\n");
    expect(lines).toEqual(Array.from({ length: 40_000 }, (_, n) => `stdout F:line ${n}`));
    await handler.remove(ref, signal());
  });

  test("when the shim is killed its containers are reported, then the sandbox, and nothing runs on", async () => {
    const doomed = await runPod();
    const ref = await run(["sleep", "1000"], {}, doomed);
    const process = pidOf(ref.state, "process");
    execFileSync("kill", ["-9", String(pidOf(doomed.state, "shim"))]);
    await host.until(() => host.sandboxExits.includes(doomed.id), "the sandbox's end");
    expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
    expect(alive(process)).toBe(false);
    await handler.remove(ref, signal());
    await removePod(doomed);
    expect(readdirSync(doomed.stateDir)).toEqual([]);
    expect(readdirSync(ref.stateDir)).toEqual([]);
  });

  test("a shim killed while the daemon is away is found dead, and its leftovers are removed", async () => {
    const doomed = await runPod();
    const ref = await run(["sleep", "1000"], {}, doomed);
    await restart(async () => {
      execFileSync("kill", ["-9", String(pidOf(doomed.state, "shim"))]);
    });
    const found = await handler.recover(doomed, [ref], signal());
    expect(found.sandboxAlive).toBe(false);
    expect(found.containers.get(ref.id)).toMatchObject({ state: "exited", exit: { code: 137 } });
    expect(alive(pidOf(ref.state, "process"))).toBe(false);
    await handler.remove(ref, signal());
    await removePod(doomed);
    await handler.recover(pod, [], signal());
  });

  test("when the holder dies the containers are reported first", async () => {
    const doomed = await runPod();
    const ref = await run(["sleep", "1000"], {}, doomed);
    const order: string[] = [];
    const holder = readFileSync(join(doomed.stateDir, doomed.id, "init.pid"), "utf8");
    execFileSync("kill", ["-9", holder]);
    await host.until(() => {
      if (host.exits.has(ref.id) && !order.includes("container")) order.push("container");
      if (host.sandboxExits.includes(doomed.id) && !order.includes("sandbox")) order.push("sandbox");
      return order.includes("sandbox") || (kind !== "gvisor" && host.sandboxExits.includes(doomed.id));
    }, "the sandbox's end");
    expect(order[0]).toBe("container");
    expect(host.exits.get(ref.id)).toMatchObject([{ code: 137 }]);
    await handler.remove(ref, signal());
    await removePod(doomed);
  });

  test("a container that needs more memory than it may have is reported as out of memory", async () => {
    const small = await runPod();
    const ref = await run(["sh", "-c", "head -c 600000000 /dev/zero | tail"], {}, small);
    const exit = await host.exitOf(ref.id);
    expect(exit.oomKilled).toBe(true);
    // The shell outlives its pipe in runc's container; gVisor's sandbox goes as a whole.
    if (kind === "gvisor") expect(exit.code).toBe(137);
    await handler.remove(ref, signal());
    await removePod(small);
  });

  test("a pod that is stopped and removed leaves no process, and stopping it again succeeds", async () => {
    const brief = await runPod();
    const ref = await run(["sleep", "1000"], {}, brief);
    const made = await create(["sleep", "1000"], {}, brief);
    await handler.stopSandbox(brief, signal());
    expect(await host.exitOf(ref.id)).toMatchObject({ code: 137 });
    expect(await host.exitOf(made.id)).toMatchObject({ code: 137 });
    expect(host.sandboxExits).not.toContain(brief.id);
    expect(alive(pidOf(brief.state, "shim"))).toBe(false);
    await handler.stopSandbox(brief, signal());
    for (const each of [ref, made]) await handler.remove(each, signal());
    await handler.removeSandbox(brief, signal());
    await handler.removeSandbox(brief, signal());
    expect(readdirSync(brief.stateDir)).toEqual([]);
  });

  // The others have no network of their own in the sandbox.
  if (kind === "gvisor")
    test("a port of the pod is reached through its own network stack", async () => {
      const ref = await run(["nc", "-l", "-p", "8080", "-e", "cat"]);
      await sleep(500);
      const connection = await handler.portForward(pod, 8080, signal());
      connection.write("through\n");
      expect(await readUntil(connection, "through\n")).toBe("through\n");
      connection.destroy();
      await expect(handler.portForward(pod, 8081, signal())).rejects.toMatchObject({
        code: "failed-precondition",
      });
      await end(ref);
    });

  // It reads a configuration file, which names the program.
  if (kind === "gvisor")
    test("a runtime that cannot start fails the pod with its reason, and leaves nothing", async () => {
      const configPath = join(host.dir, "broken.toml");
      const broken = join(host.dir, "broken-runsc");
      writeFileSync(broken, "#!/bin/sh\necho broken runsc >&2\nexit 1\n", { mode: 0o755 });
      writeFileSync(configPath, `binary_name = "${broken}"\nroot = "${host.dir}/broken"\n`);
      await using other = await host.openHandler({ configPath, name: "broken" });
      const launch = host.newPod();
      await expect(other.handler.runSandbox(launch, signal())).rejects.toThrow(
        "broken-runsc did not terminate",
      );
      expect(readdirSync(launch.stateDir)).toEqual([]);
      const left = execFileSync("ps", ["-eo", "args"])
        .toString()
        .split("\n")
        .filter((line) => line.includes(launch.id));
      expect(left).toEqual([]);
    });
});
