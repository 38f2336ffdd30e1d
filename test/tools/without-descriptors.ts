import { execFileSync } from "node:child_process";

/**
 * Starts `true` by the function `start` of a module (or by spawn of Node's) in a process of its own that may open few
 * files and has all but `left` of them open. Returns what it said: what was thrown, and how many files more are open
 * afterwards. Throws when that process ended of it.
 */
export const withoutDescriptors = (module: string, start: "startProgram" | "spawn", left: number): string =>
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
       for (const fd of fds.splice(-${left})) closeSync(fd);
       const open = () => readdirSync("/proc/self/fd").length;
       const before = open();
       try { const child = ${start}("true", [], { stdio: ["pipe", "pipe", "pipe"] }); child.stdout.on("data", () => {}); }
       catch (error) { console.log(error.code ?? error.name, error.message); }
       setTimeout(() => console.log("lives with", open() - before, "more"), 50);`,
    ],
    { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
  );

/** What it says where the start is refused in words, and nothing stays open. */
export const refusedInWords =
  'begins\nresource-exhausted Cannot run "true": no file descriptors are left\nlives with 0 more\n';
