import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { PassThrough, type Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createLinux } from "../../linux/linux-ffi.ts";
import { readProcess } from "../../linux/process.ts";
import { holderProgram } from "../../spec/holder-program.ts";
import type { Process, Spec } from "../../spec/oci.ts";
import { readLayout } from "../../stats/layout.ts";
import type { ContainerRef, ExecRequest, Exit, SandboxRef } from "../handler.ts";
import { startExec } from "./exec.ts";
import { createOciHandler, type OciHandler } from "./oci.ts";

const runc =
  process.env.BULKHEAD_RUNC ??
  join(process.env.BULKHEAD_CACHE ?? join(homedir(), ".cache/bulkhead"), "bin/runc");
const signal = () => AbortSignal.timeout(20_000);
const linux = createLinux();
const layout = readLayout();

let root: string;
let rootfs: string;
let handler: OciHandler;
let exits: Map<string, Exit[]>;
let gone: string[];
let serial = 0;
const started: { ref: ContainerRef }[] = [];

const open = async (): Promise<void> => {
  handler = await createOciHandler(
    { name: "runc", revision: "", path: runc, options: [], systemdCgroup: false, restoreCheckpoints: false },
    {
      linux,
      events: {
        containerExited: (id, exit) => exits.set(id, [...(exits.get(id) ?? []), exit]),
        sandboxExited: (id) => gone.push(id),
      },
      network: { dial: async (netns, port) => Object.assign(new PassThrough(), { netns, port }) },
      programs: { conmon: "/usr/bin/conmon", reaper: join(root, "reaper"), pause: join(root, "pause") },
      stateRoot: join(root, "runc"),
      exitDirectory: join(root, "exits"),
      cgroup: layout,
      monitorCgroup: `/bh-oci-test-${process.pid}/monitors`,
      log: pino({ level: "warn" }, pino.destination(2)),
    },
  );
};

/** What kill -9 of the daemon leaves: nothing of the handler's memory. */
const restart = async () => {
  handler.close();
  await open();
};

beforeAll(async () => {
  root = mkdtempSync("/run/bh-oci-");
  const source = new URL("../../monitor/", import.meta.url).pathname;
  execFileSync("cc", ["-Os", "-static", "-o", join(root, "reaper"), join(source, "exec/reaper.c")]);
  writeFileSync(join(root, "pause"), holderProgram(process.arch), { mode: 0o755 });
  rootfs = join(root, "rootfs");
  for (const directory of ["bin", "proc", "dev", "sys", "tmp"])
    mkdirSync(join(rootfs, directory), { recursive: true });
  execFileSync("cp", ["/bin/busybox", join(rootfs, "bin/busybox")]);
  execFileSync("/bin/busybox", ["--install", "-s", join(rootfs, "bin")]);
  execFileSync("sh", ["-c", `for l in ${rootfs}/bin/*; do [ -L $l ] && ln -sf busybox $l; done`]);
  exits = new Map();
  gone = [];
  await open();
});

afterEach(async () => {
  for (const { ref } of started.splice(0)) await handler.remove(ref, signal());
});

afterAll(async () => {
  handler.close();
  rmSync(root, { recursive: true, force: true });
  // runc makes the cgroup in the unified hierarchy beside v1 too.
  const mountpoints = Object.values(layout.mounts).map((mount) => mount.mountpoint);
  for (const mountpoint of [...mountpoints, "/sys/fs/cgroup/unified"]) {
    const cgroup = join(mountpoint, `bh-oci-test-${process.pid}`);
    execFileSync("sh", ["-c", `[ ! -d ${cgroup} ] || find ${cgroup} -depth -type d -exec rmdir {} +`]);
  }
});

const caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
const processOf = (args: string[], extra: Partial<Process> = {}): Process => ({
  user: { uid: 0, gid: 0 },
  args,
  env: ["PATH=/bin"],
  cwd: "/",
  capabilities: { bounding: caps, effective: caps, permitted: caps },
  ...extra,
});

const specOf = (id: string, args: string[], extra: Partial<Spec["linux"]> = {}): Spec => ({
  ociVersion: "1.2.0",
  root: { path: rootfs, readonly: true },
  process: processOf(args),
  mounts: [
    { destination: "/proc", type: "proc", source: "proc" },
    { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755"] },
    { destination: "/dev/pts", type: "devpts", source: "devpts", options: ["newinstance", "ptmxmode=0666"] },
    { destination: "/tmp", type: "tmpfs", source: "tmpfs" },
  ],
  linux: {
    namespaces: [{ type: "pid" }, { type: "mount" }, { type: "ipc" }, { type: "uts" }, { type: "network" }],
    cgroupsPath: `/bh-oci-test-${process.pid}/pod/${id}`,
    ...extra,
  },
});

type Options = {
  tty?: boolean;
  stdin?: boolean;
  stdinOnce?: boolean;
  log?: boolean;
  linux?: Partial<Spec["linux"]>;
  sandbox?: SandboxRef;
};

const create = async (args: string[], options: Options = {}, abort = signal()): Promise<ContainerRef> => {
  const id = `c${++serial}-${"0123456789abcdef".repeat(4)}`;
  const stateDir = join(root, id);
  mkdirSync(stateDir, { mode: 0o700 });
  const { tty = false, stdin = false, stdinOnce = false, log = true } = options;
  const sandbox = options.sandbox ?? { id: "pod", stateDir: root, state: {} };
  const common = {
    id,
    sandbox,
    stateDir,
    tty,
    stdin,
    stdinOnce,
    logPath: log ? join(root, "logs", id, "0.log") : "",
  };
  const ref: ContainerRef = { ...common, state: {} };
  started.push({ ref });
  ref.state = await handler.create({ ...common, rootfs, spec: specOf(id, args, options.linux) }, abort);
  return ref;
};

const run = async (args: string[], options: Options = {}): Promise<ContainerRef> => {
  const ref = await create(args, options);
  await handler.start(ref, signal());
  return ref;
};

const until = async <T>(what: () => T | undefined | false, ms = 10_000): Promise<T> => {
  const deadline = Date.now() + ms;
  for (;;) {
    const value = what();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`);
    await sleep(5);
  }
};

const exitOf = (ref: ContainerRef) => until(() => exits.get(ref.id)?.[0]);
const logOf = (ref: ContainerRef) => (existsSync(ref.logPath) ? readFileSync(ref.logPath, "utf8") : "");
const pidOf = (ref: ContainerRef) => (ref.state as { process: { pid: number } }).process.pid;
const monitorOf = (ref: ContainerRef) => (ref.state as { monitor: { pid: number } }).monitor.pid;

const runs = (pid: number) => ![undefined, "Z"].includes(readProcess(pid)?.state);

const gather = (stream: Readable | undefined) => {
  const got = { text: "", ended: false };
  stream?.setEncoding("utf8");
  stream?.on("data", (chunk: string) => {
    got.text += chunk;
  });
  stream?.on("end", () => {
    got.ended = true;
  });
  return got;
};

const exec = async (ref: ContainerRef, args: string[], extra: Partial<ExecRequest> = {}) => {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const out = gather(stdout);
  const err = gather(stderr);
  const started = await handler.exec(
    ref,
    { process: processOf(args), tty: false, stdout, stderr, ...extra },
    signal(),
  );
  return { ...started, out, err };
};

describe("a container", () => {
  test("runs, logs in CRI format and tells its exit code and time once", async () => {
    const before = BigInt(Date.now()) * 1_000_000n;
    const ref = await run(["sh", "-c", "echo out; echo err >&2; printf end; exit 7"]);
    const exit = await exitOf(ref);
    expect(exit).toMatchObject({ code: 7, oomKilled: false });
    expect(exit.finishedAt).toBeGreaterThan(before);
    expect(exit.finishedAt).toBeLessThanOrEqual(BigInt(Date.now() + 1) * 1_000_000n);
    const time = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d`;
    expect(logOf(ref)).toMatch(new RegExp(`^${time} stdout F out$`, "m"));
    expect(logOf(ref)).toMatch(new RegExp(`^${time} stderr F err$`, "m"));
    expect(logOf(ref)).toMatch(new RegExp(`^${time} stdout P end$`, "m"));
    await sleep(50);
    expect(exits.get(ref.id)).toHaveLength(1);
  });

  test("waits for start, and its process is there before", async () => {
    const ref = await create(["true"]);
    expect(readProcess(pidOf(ref))).toBeDefined();
    await sleep(50);
    expect(exits.get(ref.id)).toBeUndefined();
    await handler.start(ref, signal());
    expect(await exitOf(ref)).toMatchObject({ code: 0 });
  });

  test("killed by a signal exits with 128 + its number; a second kill succeeds", async () => {
    const ref = await run(["sleep", "1000"]);
    await handler.kill(ref, 9, false, signal());
    expect(await exitOf(ref)).toMatchObject({ code: 137, oomKilled: false });
    await handler.kill(ref, 9, false, signal());
    await handler.kill(ref, 9, true, signal());
  });

  test("kill of all takes processes that the first one is not the parent of", async () => {
    const ref = await run(["sh", "-c", "sleep 1000 & sleep 1001 & exec sleep 1002"], {
      linux: { namespaces: [{ type: "mount" }] },
    });
    await until(
      () =>
        readFileSync(`/proc/${pidOf(ref)}/task/${pidOf(ref)}/children`, "utf8")
          .trim()
          .split(" ").length === 2,
    );
    await handler.kill(ref, 9, true, signal());
    expect(await exitOf(ref)).toMatchObject({ code: 137 });
    // It goes with what it held, at once.
    const [cgroup] = Object.values((ref.state as { cgroup: Record<string, string> }).cgroup);
    await expect.poll(() => existsSync(cgroup!)).toBe(false);
  });

  test("over its memory limit is reported as killed by the OOM killer", async () => {
    const ref = await run(["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=64"], {
      linux: { resources: { memory: { limit: 16 << 20 } } },
    });
    const exit = await exitOf(ref);
    expect(exit.oomKilled).toBe(true);
  });

  test("that the runtime refuses says why in its words when it is started, and leaves nothing", async () => {
    const ref = await create(["/no/such/program"]);
    expect(existsSync(join(root, "runc", ref.id))).toBe(false);
    expect(existsSync(join(ref.stateDir, "config.json"))).toBe(false);
    const found = await handler.recover(ref.sandbox, [ref], signal());
    expect(found.containers.get(ref.id)).toEqual({ state: "created" });
    await expect(handler.start(ref, signal())).rejects.toThrow(
      /^Cannot start the container: .*exec: "\/no\/such\/program": .*no such file or directory$/,
    );
    await handler.kill(ref, 9, true, signal());
    await handler.kill(ref, 9, true, signal());
    expect(exits.get(ref.id)).toMatchObject([{ code: 137 }]);
    await handler.remove(ref, signal());
    expect(execFileSync("ls", [ref.stateDir], { encoding: "utf8" })).toBe("");
  });

  test("whose creation is cancelled leaves nothing, whenever that is", async () => {
    const rejected: number[] = [];
    for (const ms of [1, 8, 15, 30]) {
      const made = await create(["sleep", "1000"], {}, AbortSignal.timeout(ms)).catch((error: Error) => {
        expect(error.message).toMatch(/abort|timeout/i);
        rejected.push(ms);
      });
      // A quick machine has made it before a late cancellation: then there is a container, and it is asked to go.
      if (made) await handler.remove(made, signal());
      const { ref } = started.at(-1)!;
      expect(existsSync(join(root, "runc", ref.id))).toBe(false);
      expect(execFileSync("ls", [ref.stateDir], { encoding: "utf8" })).toBe("");
      expect(
        existsSync(join(layout.mounts.pids!.mountpoint, `bh-oci-test-${process.pid}/pod/${ref.id}`)),
      ).toBe(false);
    }
    expect(rejected).toContain(1);
  });

  test("whose monitor is killed is ended and exits with 255 before long", async () => {
    const ref = await run(["sleep", "1000"]);
    process.kill(monitorOf(ref), "SIGKILL");
    expect(await until(() => exits.get(ref.id)?.[0], 15_000)).toMatchObject({ code: 255 });
    expect(runs(pidOf(ref))).toBe(false);
  });

  test("removed while it runs leaves no process, no file and no monitor; again is no failure", async () => {
    const ref = await run(["sleep", "1000"]);
    const [pid, monitor] = [pidOf(ref), monitorOf(ref)];
    await handler.remove(ref, signal());
    expect([runs(pid), runs(monitor)]).toEqual([false, false]);
    expect(existsSync(join(root, "exits", ref.id))).toBe(false);
    await handler.remove(ref, signal());
  });

  test("tells its usage and takes new limits", async () => {
    const ref = await run(["sleep", "1000"], { linux: { resources: { memory: { limit: 64 << 20 } } } });
    const usage = await handler.stats(ref, signal());
    expect(usage?.memoryLimit).toBe(64n << 20n);
    expect(usage?.cpuNanos).toBeGreaterThan(0n);
    expect(usage?.memoryUsage).toBeGreaterThan(0n);
    // Until the program is executed, runc's threads are there.
    await expect.poll(async () => (await handler.stats(ref, signal()))?.pids).toBe(1n);
    await handler.update(ref, { memory: { limit: 32 << 20 } }, signal());
    expect((await handler.stats(ref, signal()))?.memoryLimit).toBe(32n << 20n);
  });

  test("writes on in a new file after reopenLog, nothing is lost and nothing comes twice", async () => {
    const ref = await run([
      "sh",
      "-c",
      "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); usleep 2000; done",
    ]);
    await until(() => logOf(ref).includes(" 5\n"));
    const old = `${ref.logPath}.old`;
    renameSync(ref.logPath, old);
    await handler.reopenLog(ref, signal());
    expect(existsSync(ref.logPath)).toBe(true);
    const size = readFileSync(old).length;
    await exitOf(ref);
    expect(readFileSync(old).length).toBe(size);
    const lines = (readFileSync(old, "utf8") + logOf(ref))
      .trim()
      .split("\n")
      .map((line) => line.split(" ")[3]);
    expect(lines).toEqual(Array.from({ length: 400 }, (_, i) => String(i)));
    await expect(handler.reopenLog(ref, signal())).rejects.toThrow(/is not running/);
  });

  test("lives through a reopenLog on a disk without room for a file, and goes on in the old one", async () => {
    const logs = join(root, "logs");
    mkdirSync(logs, { recursive: true });
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m,nr_inodes=6", "bh-oci-logs", logs]);
    try {
      const ref = await run(["sh", "-c", "while :; do echo tick; usleep 20000; done"]);
      const filler = join(logs, "filler");
      mkdirSync(filler);
      for (const name of ["1", "2"]) writeFileSync(join(filler, name), "");
      const old = `${ref.logPath}.old`;
      renameSync(ref.logPath, old);
      await expect(handler.reopenLog(ref, signal())).rejects.toThrow(/Cannot reopen the log: ENOSPC/);
      const size = readFileSync(old).length;
      await until(() => readFileSync(old).length > size);
      rmSync(filler, { recursive: true });
      await handler.reopenLog(ref, signal());
      await until(() => logOf(ref).includes("tick"));
      expect(readdirSync(dirname(ref.logPath)).sort()).toEqual(["0.log", "0.log.old"]);
      expect(exits.get(ref.id)).toBeUndefined();
      await handler.remove(ref, signal());
    } finally {
      execFileSync("umount", ["-l", logs]);
    }
  });

  test("without a log path runs and writes none", async () => {
    const ref = await run(["echo", "x"], { log: false });
    expect(await exitOf(ref)).toMatchObject({ code: 0 });
  });

  test("keeps its monitor out of the daemon's session and cgroup", async () => {
    const ref = await run(["sleep", "1000"]);
    const monitor = monitorOf(ref);
    expect(readProcess(monitor)?.session).toBe(monitor);
    await until(() =>
      readFileSync(`/proc/${monitor}/cgroup`, "utf8").includes(`/bh-oci-test-${process.pid}/monitors`),
    );
  });
});

describe("exec", () => {
  let ref: ContainerRef;
  const target = async () => {
    ref = await run(["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"]);
    return ref;
  };

  test("gives output on both streams and the exit code", async () => {
    const { exited, out, err } = await exec(await target(), ["sh", "-c", "echo out; echo err >&2; exit 3"]);
    expect(await exited).toBe(3);
    expect([out.text, err.text]).toEqual(["out\n", "err\n"]);
  });

  test("gives all of a large output", async () => {
    const { exited, out } = await exec(await target(), [
      "sh",
      "-c",
      "dd if=/dev/zero bs=1M count=4 2>/dev/null",
    ]);
    expect(await exited).toBe(0);
    expect(out.text.length).toBe(4 << 20);
  });

  test("feeds stdin and its end; /dev/stdin and /dev/stdout can be opened again", async () => {
    const stdin = new PassThrough();
    const { exited, out } = await exec(await target(), ["sh", "-c", "cat /dev/stdin > /dev/stdout"], {
      stdin,
    });
    stdin.end("x".repeat(300_000));
    expect(await exited).toBe(0);
    expect(out.text.length).toBe(300_000);
  });

  test("says why a program cannot run, and nothing of it on stderr", async () => {
    const container = await target();
    const stderr = new PassThrough();
    const err = gather(stderr);
    const request = { process: processOf(["nope"]), tty: false, stderr };
    await expect(handler.exec(container, request, signal())).rejects.toThrow(
      /^Cannot execute in container .*exec: "nope": executable file not found in \$PATH$/,
    );
    expect(err.text).toBe("");
  });

  test("ends when the process does although a grandchild holds its output", async () => {
    const { exited, out } = await exec(await target(), ["sh", "-c", "sleep 1000 & echo done"]);
    const start = performance.now();
    expect(await exited).toBe(0);
    expect(out.text).toBe("done\n");
    expect(performance.now() - start).toBeLessThan(2_000);
  });

  test("kill takes the process and what it started, and not the container", async () => {
    const container = await target();
    const { exited, kill } = await exec(container, ["sh", "-c", "sleep 2000 & sleep 2001"]);
    await until(() => processesMatching("sleep\u00002000").length === 1);
    await kill();
    expect(await exited).toBe(137);
    await until(() => processesMatching("sleep\u00002000").length === 0);
    expect(processesMatching("sleep\u00002001")).toEqual([]);
    expect(readProcess(pidOf(container))).toBeDefined();
    expect(exits.get(container.id)).toBeUndefined();
  });

  test("killed by a signal gives 128 + its number", async () => {
    const { exited } = await exec(await target(), ["sh", "-c", "kill -15 $$"]);
    expect(await exited).toBe(143);
  });

  test("with a terminal has one, with the size that was set, and its output to the end", async () => {
    const stdin = new PassThrough();
    const { exited, out, resize } = await exec(await target(), ["sh"], { tty: true, stdin });
    await resize(123, 45);
    stdin.write("stty size; tty; exit 5\n");
    expect(await exited).toBe(5);
    expect(out.text).toMatch(/45 123\r\n/);
    expect(out.text).toMatch(/\/dev\/pts\/\d+\r\n/);
  });

  test("with a terminal loses nothing of a process that ends at once", async () => {
    const container = await target();
    for (let i = 0; i < 5; i++) {
      const { exited, out } = await exec(container, ["echo", "short"], { tty: true });
      expect(await exited).toBe(0);
      expect(out.text).toBe("short\r\n");
    }
  });

  test("leaves no file and no descriptor behind", async () => {
    const container = await target();
    await (await exec(container, ["true"])).exited;
    const before = descriptors();
    for (let i = 0; i < 3; i++) await (await exec(container, ["true"], { tty: i === 1 })).exited;
    await until(() => descriptors() <= before);
    expect(execFileSync("ls", [container.stateDir], { encoding: "utf8" })).not.toMatch(/exec-/);
  });

  test("leaves none either when the container's process ends just before", async () => {
    const { id, stateDir } = await target();
    const before = descriptors();
    const gone = { id, stateDir, cgroup: {}, pid: 2 ** 22 + 1 };
    const deps = {
      command: { path: "/bin/false", options: [], stateRoot: "/" },
      reaper: "/bin/false",
      linux: createLinux(),
    };
    const request = { process: processOf(["true"]), tty: false, stdout: new PassThrough() };
    for (let i = 0; i < 3; i++)
      await expect(startExec(gone, request, deps, signal())).rejects.toThrow("ENOENT");
    await until(() => descriptors() <= before);
    expect(execFileSync("ls", [stateDir], { encoding: "utf8" })).not.toMatch(/exec-/);
  });
});

describe("attach", () => {
  test("connects stdin and both outputs, and half-closes stdin", async () => {
    const ref = await run(["sh", "-c", "echo ready; cat; echo bye >&2; exit 4"], {
      stdin: true,
      stdinOnce: true,
    });
    await until(() => logOf(ref).includes("ready"));
    const session = await handler.attach(ref, signal());
    const [out, err] = [gather(session.stdout), gather(session.stderr)];
    const text = Array.from({ length: 20_000 }, (_, i) => `${i}\n`).join("");
    session.stdin!.end(text);
    expect(await exitOf(ref)).toMatchObject({ code: 4 });
    await until(() => out.ended && err.ended);
    expect(out.text).toBe(text);
    expect(err.text).toBe("bye\n");
  });

  test("leaves stdin open for the next client without stdinOnce", async () => {
    const ref = await run(["sh", "-c", "read a; read b; echo $a$b"], { stdin: true });
    const first = await handler.attach(ref, signal());
    first.stdin!.end("one\n");
    await sleep(200);
    first.close();
    const second = await handler.attach(ref, signal());
    const out = gather(second.stdout);
    second.stdin!.write("two\n");
    await until(() => out.text === "onetwo\n");
    await exitOf(ref);
  });

  test("to a terminal resizes it", async () => {
    const ref = await run(["sh"], { tty: true, stdin: true });
    const session = await handler.attach(ref, signal());
    const out = gather(session.stdout);
    expect(session.stderr).toBeUndefined();
    await Promise.all([session.resize(80, 24), session.resize(111, 22), session.resize(132, 43)]);
    await sleep(100);
    session.stdin!.write("stty size\n");
    await until(() => out.text.includes("43 132"));
    session.stdin!.write("exit 2\n");
    expect(await exitOf(ref)).toMatchObject({ code: 2 });
    await until(() => out.ended);
  });

  test("that nobody uses takes no processor time", async () => {
    const ref = await run(["sleep", "1000"], { stdin: true });
    const sessions = await Promise.all(Array.from({ length: 20 }, () => handler.attach(ref, signal())));
    await sleep(300);
    const before = process.cpuUsage();
    await sleep(1_000);
    const { user, system } = process.cpuUsage(before);
    for (const session of sessions) session.close();
    expect(user + system).toBeLessThan(50_000);
  });

  test("is refused when the container is not running", async () => {
    const ref = await run(["true"]);
    await exitOf(ref);
    await expect(handler.attach(ref, signal())).rejects.toThrow(/is not running/);
  });
});

describe("after kill -9 of the daemon", () => {
  const pod: SandboxRef = { id: "pod", stateDir: "", state: {} };

  test("recover() tells what waits, what runs, and how what ended ended", async () => {
    const waiting = await create(["true"]);
    const running = await run(["sh", "-c", "while :; do echo tick; usleep 100000; done"]);
    const ended = await run(["sh", "-c", "usleep 300000; exit 9"]);
    handler.close();
    const file = join(root, "exits", ended.id);
    await until(() => existsSync(file));
    await sleep(100);
    await open();
    const { containers, sandboxAlive } = await handler.recover(pod, [waiting, running, ended], signal());
    expect(sandboxAlive).toBe(true);
    expect(containers.get(waiting.id)).toEqual({ state: "created" });
    expect(containers.get(running.id)).toEqual({ state: "running" });
    const exit = containers.get(ended.id);
    expect(exit).toMatchObject({ state: "exited", exit: { code: 9, oomKilled: false } });
    if (exit?.state === "exited")
      expect(exit.exit.finishedAt).toBeLessThan(BigInt(Date.now() - 90) * 1_000_000n);
    expect(exits.get(ended.id)).toBeUndefined();
    await handler.kill(running, 15, false, signal());
    await handler.kill(running, 9, false, signal());
    expect(await exitOf(running)).toMatchObject({ code: 137 });
    await handler.start(waiting, signal());
    expect(await exitOf(waiting)).toMatchObject({ code: 0 });
    expect(exits.get(running.id)).toHaveLength(1);
  });

  test("what could not be taken up can be ended, and its end is told", async () => {
    const running = await run(["sleep", "1000"]);
    const ended = await run(["sh", "-c", "usleep 200000; exit 9"]);
    handler.close();
    await until(() => existsSync(join(root, "exits", ended.id)));
    await open();
    for (const ref of [running, ended]) await handler.kill(ref, 9, true, signal());
    expect(await exitOf(running)).toMatchObject({ code: 137 });
    expect(await exitOf(ended)).toMatchObject({ code: 9 });
  });

  test("exec, attach and the log go on", async () => {
    const ref = await run(["sh", "-c", "while :; do echo tick; usleep 50000; done"]);
    await restart();
    await handler.recover(pod, [ref], signal());
    const length = logOf(ref).length;
    await until(() => logOf(ref).length > length);
    const { exited } = await exec(ref, ["sh", "-c", "exit 6"]);
    expect(await exited).toBe(6);
    const out = gather((await handler.attach(ref, signal())).stdout);
    await until(() => out.text.includes("tick"));
  });

  test("a container whose monitor was killed is ended and said to have ended with 255", async () => {
    const ref = await run(["sleep", "1000"]);
    const pid = pidOf(ref);
    process.kill(monitorOf(ref), "SIGKILL");
    await until(() => !runs(monitorOf(ref)));
    await restart();
    const { containers } = await handler.recover(pod, [ref], signal());
    expect(containers.get(ref.id)).toMatchObject({ state: "exited", exit: { code: 255 } });
    await until(() => !runs(pid));
  });

  test("a record from before create() was through is unknown, and can be removed", async () => {
    const ref = await run(["sleep", "1000"]);
    const pid = pidOf(ref);
    const record = { ...ref, state: {} };
    await restart();
    expect((await handler.recover(pod, [record], signal())).containers.get(ref.id)).toEqual({
      state: "unknown",
    });
    await handler.remove(record, signal());
    expect(runs(pid)).toBe(false);
  });
});

describe("a pod", () => {
  test("whose namespaces are files needs no process", async () => {
    const { process: _, ...spec } = specOf("none", []);
    const launch = {
      id: "p0",
      stateDir: join(root, "p0"),
      namespaces: { net: "/x" },
      hostname: "",
      rootfs: "",
      logDirectory: "",
      annotations: {},
    };
    const state = await handler.runSandbox({ ...launch, spec }, signal());
    expect(state).not.toHaveProperty("pid");
    expect(await handler.portForward({ id: "p0", stateDir: "", state }, 80, signal())).toMatchObject({
      netns: "/x",
      port: 80,
    });
  });

  const shared = async (id: string): Promise<SandboxRef> => {
    const stateDir = join(root, id);
    mkdirSync(stateDir);
    const launch = {
      id,
      stateDir,
      namespaces: {},
      hostname: "",
      rootfs: "",
      logDirectory: "",
      annotations: {},
    };
    return {
      id,
      stateDir,
      state: await handler.runSandbox({ ...launch, spec: specOf(id, ["/pause"]) }, signal()),
    };
  };

  test("that shares its PID namespace gets a holder, which reaps, and goes with everything in it", async () => {
    const sandbox = await shared("p1");
    const state = sandbox.state as { pid: number; pidNamespace: string };
    const namespaces = [{ type: "pid" as const, path: state.pidNamespace }, { type: "mount" as const }];
    const ref = await run(["sh", "-c", "(sleep 0.1 & ) ; exec sleep 1000"], {
      sandbox,
      linux: { namespaces },
    });
    const { exited, out } = await exec(ref, ["sh", "-c", "usleep 300000; ps -o pid,stat,args"]);
    expect(await exited).toBe(0);
    expect(out.text).toMatch(/^\s*1 S\s+\/pause$/m);
    expect(out.text).not.toMatch(/ Z /);
    const usage = await handler.sandboxStats(sandbox, signal());
    expect(usage?.memoryUsage).toBeGreaterThan(0n);
    await handler.stopSandbox(sandbox, signal());
    expect(await exitOf(ref)).toMatchObject({ code: 137 });
    await handler.stopSandbox(sandbox, signal());
    await handler.removeSandbox(sandbox, signal());
    await handler.removeSandbox(sandbox, signal());
    expect(existsSync(join(sandbox.stateDir, "holder"))).toBe(false);
    expect(gone).toEqual([]);
  });

  test("whose holder dies is reported after its containers", async () => {
    const sandbox = await shared("p2");
    const state = sandbox.state as { pid: number; pidNamespace: string };
    const namespaces = [{ type: "pid" as const, path: state.pidNamespace }, { type: "mount" as const }];
    const ref = await run(["sleep", "1000"], { sandbox, linux: { namespaces } });
    process.kill(state.pid, "SIGKILL");
    expect(await exitOf(ref)).toMatchObject({ code: 137 });
    await until(() => gone.includes("p2"));
    await handler.removeSandbox(sandbox, signal());
  });
});

test("features are what the runtime says", () => {
  expect(handler.features().recursiveReadOnlyMounts).toBe(true);
});

const processesMatching = (command: string): string[] =>
  execFileSync("sh", ["-c", "grep -lsa . /proc/[0-9]*/cmdline || true"], { encoding: "utf8" })
    .split("\n")
    .filter((path) => {
      try {
        return (
          readFileSync(path, "utf8").startsWith(command) &&
          readProcess(Number(dirname(path).slice(6)))?.state !== "Z"
        );
      } catch {
        return false;
      }
    });

const descriptors = () =>
  Number(execFileSync("sh", ["-c", `ls /proc/${process.pid}/fd | wc -l`], { encoding: "utf8" }));
