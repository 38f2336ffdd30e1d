import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createLinux } from "../../linux/linux-ffi.ts";
import { createReadiness } from "../../linux/readiness.ts";
import { LogFile } from "./log-file.ts";
import { ContainerOutput, openCopyPipe } from "./output.ts";
import { holdOpen, makeStdio, stdioPaths } from "./stdio.ts";

const linux = createLinux();
const runtime = join(import.meta.dirname, "../..");
type Moment = "before" | "noted" | "taken" | "torn" | "written";
let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-shim-output-"));
});
afterEach(() => rmSync(dir, { recursive: true }));

const setUp = (log: LogFile | undefined) => {
  const stack = new DisposableStack();
  const stdio = stdioPaths(join(dir, "io"), { tty: true, stdin: false });
  mkdirSync(join(dir, "host"), { recursive: true });
  makeStdio(join(dir, "io"), stdio, linux);
  const held = stack.use(holdOpen(stdio));
  const copyPipe = stack.use(openCopyPipe(join(dir, "host"), linux));
  const failures: unknown[] = [];
  const output = new ContainerOutput(
    stdio,
    { tty: true, log },
    { linux, readiness: createReadiness(), copyPipe, logFailed: (error) => failures.push(error) },
  );
  stack.defer(() => output.close());
  const writer = openSync(stdio.stdout, "w");
  held[Symbol.dispose]();
  return { stdio, output, writer, failures, [Symbol.dispose]: () => stack.dispose() };
};

/** A daemon that kills itself at a moment of its first write to the log. */
const dying = (moment: Moment): string => `
import { appendFileSync } from "node:fs";
import { createLinux } from "${runtime}/linux/linux-ffi.ts";
import { createReadiness } from "${runtime}/linux/readiness.ts";
import { LogFile } from "${runtime}/handler/shim/log-file.ts";
import { ContainerOutput, openCopyPipe } from "${runtime}/handler/shim/output.ts";
const die = (at) => at === "${moment}" && process.kill(process.pid, "SIGKILL");
const linux = createLinux();
class Log extends LogFile {
  write(stream, chunk, before) {
    die("before");
    super.write(stream, chunk, (place) => {
      before?.(place);
      die("taken");
      if ("${moment}" === "torn") appendFileSync("${dir}/log", "2026-01-01T00:00:00.000000000Z stdout F 1");
      die("torn");
    });
    die("written");
  }
}
const splice = (...args) => die("noted") || linux.splice(...args);
new ContainerOutput(
  { stdin: "", stdout: "${dir}/io/stdout", stderr: "" },
  { tty: true, log: new Log("${dir}/log") },
  { linux: { tee: linux.tee, splice }, readiness: createReadiness(), copyPipe: openCopyPipe("${dir}", linux) },
).start();`;

test("a daemon that is killed, at whatever moment, loses no line and leaves none twice", async () => {
  using pump = setUp(undefined);
  // As the keeper does when no daemon reads.
  const keeper = openSync(pump.stdio.stdout, 0o4000);
  pump.output.close();
  const moments: Moment[] = [
    "before",
    "noted",
    "taken",
    "torn",
    "written",
    "taken",
    "written",
    "torn",
    "before",
  ];
  const expected: string[] = [];
  let written = "";
  for (const [round, moment] of moments.entries()) {
    const lines = Array.from({ length: 50 }, (_, n) => (n % 2 === 0 ? "the same" : `${round} ${n}`));
    expected.push(...lines);
    writeSync(pump.writer, lines.map((line) => `${line}\n`).join(""));
    const args = ["--input-type=module", "-e", dying(moment)];
    const { signal, stderr } = spawnSync(process.execPath, args, { timeout: 30_000 });
    expect(signal, String(stderr)).toBe("SIGKILL");
    if (moment === "written") written = readFileSync(join(dir, "log"), "utf8");
  }
  using last = setUp(new LogFile(join(dir, "log")));
  for (const fd of [keeper, pump.writer, last.writer]) closeSync(fd);
  await last.output.drained(AbortSignal.timeout(30_000));
  const log = readFileSync(join(dir, "log"), "utf8");
  // With its times: it was not written again.
  expect(log.startsWith(written)).toBe(true);
  const logged = log.trimEnd().split("\n");
  expect(logged.map((line) => line.replace(/^\S+ stdout F /, ""))).toEqual(expected);
});

test("an attached client sees a prompt at once, once, and without a log", async () => {
  using pump = setUp(undefined);
  const client = pump.output.attach();
  writeSync(pump.writer, "login: ");
  let all = "";
  client.stdout.on("data", (chunk) => {
    all += chunk;
  });
  while (all === "") await sleep(5);
  writeSync(pump.writer, "root\nPassword: ");
  while (!all.includes("Password")) await sleep(5);
  expect(all).toBe("login: root\nPassword: ");
  closeSync(pump.writer);
  await pump.output.drained(AbortSignal.timeout(30_000));
  expect(all).toBe("login: root\nPassword: ");
});

test("a line longer than 16 KiB is logged in parts that make the whole", async () => {
  const log = new LogFile(join(dir, "log"));
  using pump = setUp(log);
  const long = "x".repeat(50_000);
  writeSync(pump.writer, long);
  writeSync(pump.writer, "end\n");
  closeSync(pump.writer);
  await pump.output.drained(AbortSignal.timeout(30_000));
  const lines = readFileSync(join(dir, "log"), "utf8").trimEnd().split("\n");
  expect(lines.map((line) => line.split(" ").slice(3).join(" ")).join("")).toBe(`${long}end`);
  const tags = lines.map((line) => line.split(" ")[2]);
  expect(tags.at(-1)).toBe("F");
  expect(new Set(tags.slice(0, -1))).toEqual(new Set(["P"]));
});

test("a disk that was full for a while costs what could not be written, and no line before or after it", async () => {
  const disk = join(dir, "disk");
  mkdirSync(disk);
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "bh-log-full", disk]);
  try {
    using pump = setUp(new LogFile(join(disk, "log")));
    writeSync(pump.writer, "first\n");
    while (!readFileSync(join(disk, "log"), "utf8").includes("first")) await sleep(5);
    // All but some bytes of the log's own page.
    writeFileSync(join(disk, "filler"), Buffer.alloc(60 << 10));
    writeSync(pump.writer, `${"x".repeat(1000)}\n`.repeat(8));
    while (pump.failures.length === 0) await sleep(5);
    rmSync(join(disk, "filler"));
    writeSync(pump.writer, "last\n");
    closeSync(pump.writer);
    await pump.output.drained(AbortSignal.timeout(30_000));
    const lines = readFileSync(join(disk, "log"), "utf8").trimEnd().split("\n");
    expect(lines.at(0)).toMatch(/ stdout F first$/);
    expect(lines.at(-1)).toMatch(/^\S+ stdout F last$/);
    expect(lines.length).toBeGreaterThan(3);
    for (const line of lines.slice(1, -1)) expect(line).toMatch(/^\S+ stdout F x{1000}$/);
  } finally {
    execFileSync("umount", ["-l", disk]);
  }
});

test("a client that reads slowly holds the pipe back instead of our memory", async () => {
  using pump = setUp(undefined);
  const client = pump.output.attach();
  const fast = pump.output.attach();
  fast.stdout.resume();
  const chunk = Buffer.alloc(4096, "y\n");
  const nonblocking = openSync(pump.stdio.stdout, 0o4001);
  let written = 0;
  for (let idle = 0; idle < 20; )
    try {
      written += writeSync(nonblocking, chunk);
      idle = 0;
    } catch {
      idle++;
      await sleep(5);
    }
  // A client's buffer, one look more, and the pipe itself.
  expect(written).toBeLessThan(3 << 20);
  // However often the container writes meanwhile, one look waits for the client.
  expect(client.stdout.listenerCount("drain")).toBeLessThanOrEqual(2);
  let read = 0;
  client.stdout.on("data", (data) => {
    read += data.length;
  });
  closeSync(nonblocking);
  closeSync(pump.writer);
  await pump.output.drained(AbortSignal.timeout(30_000));
  pump.output.endClients();
  await sleep(50);
  expect(read).toBe(written);
});
