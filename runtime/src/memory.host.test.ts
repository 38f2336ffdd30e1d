import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";

/** Runs a program that has set its memory up as the daemon does. */
const run = async (program: string): Promise<{ said: string; signal: string | null }> => {
  const memory = JSON.stringify(new URL("./memory.ts", import.meta.url).href);
  const child = spawn(
    process.execPath,
    ["--input-type=module", "-e", `const { endWhenTooLarge } = await import(${memory});${program}`],
    { stdio: ["ignore", "pipe", "inherit"], timeout: 60_000 },
  );
  const exited = once(child, "exit");
  const said = await text(child.stdout);
  const [, signal] = (await exited) as [number | null, string | null];
  return { said, signal };
};

test("a daemon of too much memory says so and ends by SIGKILL, be it buffers or a thread's", async () => {
  const grow = `const held = []; setInterval(() => held.push(Buffer.alloc(20_000_000, 1)), 50);`;
  const { said, signal } = await run(
    `endWhenTooLarge((bytes, most) => process.stdout.write(String(bytes > most)), 300_000_000);
     const { Worker } = await import("node:worker_threads");
     new Worker(${JSON.stringify(grow)}, { eval: true });`,
  );
  expect({ said, signal }).toEqual({ said: "true", signal: "SIGKILL" });
});

test("one within its bound is left alone, and the look at it holds no program up", async () => {
  const { said, signal } = await run(
    `endWhenTooLarge(() => {}); await new Promise((end) => setTimeout(end, 2500)); process.stdout.write("done");`,
  );
  expect({ said, signal }).toEqual({ said: "done", signal: null });
});

test("the program has 64 threads for calls that may hang, whatever started it", async () => {
  const { said } = await run(
    `const { readdirSync } = await import("node:fs");
     await (await import("node:fs/promises")).stat("/");
     process.stdout.write(String(readdirSync("/proc/self/task").length > 64));`,
  );
  expect(said).toBe("true");
});
