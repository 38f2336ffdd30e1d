import { spawn } from "node:child_process";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** What a program left behind. */
export type Outcome = { code: number; stdout: string; stderr: string };

export type RunOptions = {
  signal?: AbortSignal | undefined;
  cwd?: string;
  /** Added to this process's environment. */
  env?: Record<string, string>;
  /** Written to stdin, which is closed after it. */
  input?: string;
};

/** Runs a program to its end and returns what it said, whatever its exit code. It dies with `signal`. */
export const outcome = (argv: readonly string[], options: RunOptions = {}): Promise<Outcome> =>
  new Promise((resolve, reject) => {
    const [program = "", ...args] = argv;
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: ["pipe", "pipe", "pipe"],
      killSignal: "SIGKILL",
      ...(options.signal ? { signal: options.signal } : {}),
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
    child.on("error", (error) =>
      reject(
        error.name === "AbortError"
          ? error
          : new RuntimeError("unavailable", `Cannot run ${program}: ${messageOf(error)}`, { cause: error }),
      ),
    );
    child.on("close", (code, signal) =>
      resolve({
        code: code ?? (signal === null ? 1 : 137),
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
      }),
    );
    // A program that does not read its input closes the pipe: its exit code says what happened.
    child.stdin.on("error", () => {});
    child.stdin.end(options.input ?? "");
  });

/** Runs a program that must succeed and returns its stdout. */
export const run = async (argv: readonly string[], options: RunOptions = {}): Promise<string> => {
  const { code, stdout, stderr } = await outcome(argv, options);
  if (code === 0) return stdout;
  const said = (stderr.trim() || stdout.trim()).split("\n").slice(-15).join("\n");
  throw new RuntimeError("unknown", `Cannot ${argv.slice(0, 6).join(" ")}: exit code ${code}\n${said}`);
};
