import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { refusedInWords, withoutDescriptors } from "@bulkhead/test/tools/without-descriptors.ts";
import { expect, test } from "vitest";
import { type StartOptions, startProgram } from "./start-program.ts";

const piped = { stdio: ["pipe", "pipe", "pipe"] } satisfies StartOptions;
const openFiles = (): number => readdirSync("/proc/self/fd").length;
const hung = () => AbortSignal.timeout(20_000);

test("a program gets its input, and gives its output and its exit code", { timeout: 20_000 }, async () => {
  const child = startProgram("sh", ["-c", "cat; echo bad >&2; exit 7"], piped);
  child.stdin.end("hello");
  const [said, complained, ended] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, "close", { signal: hung() }),
  ]);
  expect({ said, complained, ended }).toEqual({ said: "hello", complained: "bad\n", ended: [7, null] });
  expect(child.hasEnded).toBe(true);
  expect(child.kill("SIGKILL")).toBe(false);
});

test("environment, directory, session and descriptors are as they were asked for", async () => {
  await using stack = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), "bh-start-"));
  stack.defer(() => rm(dir, { recursive: true, force: true }));
  const file = openSync(join(dir, "out"), "w");
  const child = startProgram(
    "sh",
    [
      "-c",
      'echo "$ONLY $(env | grep -c ^HOME=) $(pwd) $$ $(cut -d" " -f5,6 /proc/$$/stat)"; ls /proc/$$/fd >&4; read x <&3; echo $x >&3',
    ],
    {
      cwd: dir,
      env: { ONLY: "this", HOME: undefined },
      detached: true,
      stdio: ["ignore", file, "ignore", "pipe", "pipe"],
    },
  );
  closeSync(file);
  child.stdio[3]?.write("both ways\n");
  const [echoed, open] = await Promise.all([
    text(child.stdio[3]!),
    text(child.stdio[4]!),
    once(child, "close", { signal: hung() }),
  ]);
  expect(echoed).toBe("both ways\n");
  // The shell keeps a copy of what it redirects, above.
  expect(open.trim().split("\n").toSorted()).toEqual(["0", "1", "10", "2", "3", "4"]);
  const said = readFileSync(join(dir, "out"), "utf8").trim();
  expect(said).toBe(`this 0 ${dir} ${child.pid} ${child.pid} ${child.pid}`);
});

test("signals that Node ignores or that are blocked are as a new program expects them", async () => {
  const child = startProgram("grep", ["Sig[BI]", "/proc/self/status"], piped);
  expect(await text(child.stdout)).toMatch(/SigBlk:\s0+\nSigIgn:\s0+\n/);
});

test("how a program was killed is told; an abort kills it and is told as an error", async () => {
  const killed = startProgram("sleep", ["100"], { stdio: "ignore" });
  const end = once(killed, "exit", { signal: hung() });
  expect(killed.kill("SIGINT")).toBe(true);
  expect(await end).toEqual([null, "SIGINT"]);

  for (const aborted of [true, false]) {
    const abort = new AbortController();
    if (aborted) abort.abort(new Error("enough"));
    const child = startProgram("sleep", ["100"], { ...piped, signal: abort.signal, killSignal: "SIGKILL" });
    const closed = once(child, "close", { signal: hung() }).catch((error) => error);
    const failed = new Promise((resolve) => child.once("error", resolve));
    if (!aborted) abort.abort(new Error("enough"));
    expect(await failed).toMatchObject({ name: "AbortError", cause: new Error("enough") });
    expect(await closed).toMatchObject({ name: "AbortError" });
    if (!child.hasEnded) await once(child, "exit", { signal: hung() });
    expect(() => process.kill(child.pid!, 0)).toThrow("ESRCH");
  }
});

test("what cannot be started says why by an event, and leaves nothing open", async () => {
  const before = openFiles();
  for (const [file, cwd, code] of [
    ["/nowhere/at/all", "/", "ENOENT"],
    ["/etc/passwd", "/", "EACCES"],
    ["true", "/nowhere", "ENOENT"],
  ] as const) {
    const child = startProgram(file, [], { ...piped, cwd });
    const error = await new Promise((resolve) => child.once("error", resolve));
    expect(error).toMatchObject({ code, message: expect.stringContaining(file) });
    expect(child.pid).toBeUndefined();
  }
  expect(() => startProgram("true", ["a\0b"], piped)).toThrow("NUL");
  // Those of the tests before may still be on their way out.
  await expect.poll(openFiles, { timeout: 20_000 }).toBeLessThanOrEqual(before);
});

test("of many at once each end is seen, whoever else has children", { timeout: 60_000 }, async () => {
  const before = openFiles();
  const codes = await Promise.all(
    Array.from({ length: 200 }, async (_, index) => {
      const child = startProgram("sh", ["-c", `exit ${index}`], piped);
      if (index % 20 === 0) execFileSync("true");
      const [code] = await once(child, "close", { signal: hung() });
      return code;
    }),
  );
  expect(codes).toEqual(Array.from({ length: 200 }, (_, index) => index));
  await expect.poll(openFiles, { timeout: 20_000 }).toBeLessThanOrEqual(before);
});

test("output of a program that ended long ago is not lost, and what nobody reads holds nothing up", async () => {
  const child = startProgram("sh", ["-c", "head -c 100000 /dev/zero"], piped);
  const length = new Promise<number>((resolve) => {
    let count = 0;
    child.stdout.on("data", (chunk: Buffer) => {
      count += chunk.length;
    });
    child.once("close", () => resolve(count));
  });
  expect(await length).toBe(100_000);
  const unread = startProgram("sh", ["-c", "head -c 1000 /dev/zero"], piped);
  expect(await once(unread, "close", { signal: hung() })).toEqual([0, null]);
});

test("without file descriptors it throws, and the process lives on", () => {
  const module = new URL("./start-program.ts", import.meta.url).href;
  for (const left of [2, 3, 5]) expect(withoutDescriptors(module, "startProgram", left)).toBe(refusedInWords);
});
