import { execFileSync } from "node:child_process";
import { expect, test } from "vitest";

const module = new URL("./start-program.ts", import.meta.url).href;

/** Runs in a process of its own that may open few files, and has them all open. */
const without = (start: string, left = 3): string =>
  execFileSync(
    "prlimit",
    [
      "--nofile=64:64",
      process.execPath,
      "--input-type=module",
      "-e",
      `import { closeSync, openSync, readdirSync } from "node:fs";
       import { spawn } from "node:child_process";
       import { startProgram } from ${JSON.stringify(module)};
       console.log("begins");
       const fds = [];
       try { for (;;) fds.push(openSync("/dev/null")); } catch {}
       // Enough for a pipe, not for a start.
       for (const fd of fds.splice(-${left})) closeSync(fd);
       const open = () => readdirSync("/proc/self/fd").length;
       const before = open();
       try { const child = ${start}("true", [], { stdio: ["pipe", "pipe", "pipe"] }); child.stdout.on("data", () => {}); }
       catch (error) { console.log(error.code ?? error.name, error.message); }
       setTimeout(() => console.log("lives with", open() - before, "more"), 50);`,
    ],
    { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
  );

test("startProgram() without file descriptors throws, and the process lives on", () => {
  expect(without("startProgram")).toBe(
    'begins\nresource-exhausted Cannot run "true": no file descriptors are left\nlives with 0 more\n',
  );
  // What it is for: the same with spawn() ends the process.
  expect(() => without("spawn")).toThrow();
});
