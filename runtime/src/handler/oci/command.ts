import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import { startProgram } from "../../linux/start-program.ts";

/** An OCI runtime's command line: the binary with its global options. */
export type RuntimeCommand = { path: string; options: string[]; stateRoot: string };

/** Global options; `log` is where the runtime writes what it has to say, apart from the container's own output. */
export const globalOptions = (command: RuntimeCommand, log?: string): string[] => [
  ...["--root", command.stateRoot],
  ...(log === undefined ? [] : ["--log", log, "--log-format", "json"]),
  ...command.options,
];

const OUTPUT_LIMIT = 1 << 20;

/**
 * Runs a subcommand to its end. With `log` its output goes nowhere and its errors to that file: for subcommands
 * that leave a process behind, which would hold our pipes.
 */
export const run = (
  command: RuntimeCommand,
  args: string[],
  signal: AbortSignal,
  log?: string,
): Promise<{ code: number; stdout: string; stderr: string }> =>
  span(`${basename(command.path)} ${args[0]}`, {}, () => runToEnd(command, args, signal, log));

const runToEnd: typeof run = (command, args, signal, log) =>
  new Promise((resolve, reject) => {
    const output = log === undefined ? "pipe" : "ignore";
    const child = startProgram(command.path, [...globalOptions(command, log), ...args], {
      signal,
      killSignal: "SIGKILL",
      stdio: ["ignore", output, output],
    });
    let stdout = "";
    let stderr = "";
    child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      if (stdout.length < OUTPUT_LIMIT) stdout += chunk;
    });
    child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
      if (stderr.length < OUTPUT_LIMIT) stderr += chunk;
    });
    child.on("error", (error) =>
      reject(
        signal.aborted
          ? signal.reason
          : new RuntimeError("failed-precondition", `Cannot run "${command.path}": ${error.message}`, {
              cause: error,
            }),
      ),
    );
    child.on("close", (code) => resolve({ code: code ?? 255, stdout, stderr }));
  });

/** The runtime's own words: the last error of its log or its output, without time stamps and JSON around them. */
export const failureOf = (text: string): string => {
  let last = "";
  for (const line of text.split("\n")) {
    if (line.trim() === "") continue;
    const message = messageIn(line);
    if (message !== undefined) last = message;
  }
  return last;
};

const messageIn = (line: string): string | undefined => {
  if (line.startsWith("{")) {
    try {
      // youki calls them otherwise, and says where in its code it was.
      const { level, msg, message } = JSON.parse(line) as Record<string, unknown>;
      const said = typeof msg === "string" ? msg : message;
      if (typeof said === "string")
        return level === undefined || /^(error|fatal)$/i.test(String(level))
          ? said.replace(/\s*Stack backtrace:[\s\S]*$/, "")
          : undefined;
    } catch {}
  }
  const logged = /^time="?[^"]*"? level=(\w+) msg=("(?:[^"\\]|\\.)*")/.exec(line);
  if (logged?.[2] !== undefined) {
    if (logged[1] === "warning" || logged[1] === "info" || logged[1] === "debug") return undefined;
    try {
      return JSON.parse(logged[2]) as string;
    } catch {}
  }
  return line.trim();
};

/** True when the runtime says that it does not know the container. */
export const saysNotFound = (text: string): boolean =>
  /does not exist|not exist|no such file or directory.*state|container .* not found/i.test(text);

/** Runs a subcommand and throws what the runtime said when it fails. */
export const mustRun = async (
  command: RuntimeCommand,
  args: string[],
  what: string,
  signal: AbortSignal,
  log?: string,
): Promise<string> => {
  const { code, stdout, stderr } = await run(command, args, signal, log);
  if (code === 0) return stdout;
  const failure = (log === undefined ? failureOf(stderr) : await failureInLog(log)) || `exit code ${code}`;
  throw new RuntimeError(saysNotFound(failure) ? "not-found" : "unknown", `Cannot ${what}: ${failure}`);
};

/** The error in a log file that the runtime wrote with --log. */
export const failureInLog = async (path: string): Promise<string> => {
  try {
    return failureOf(await readFile(path, "utf8"));
  } catch {
    return "";
  }
};

/**
 * `delete`, and `delete --force` where the container is not stopped; one that is not there any more is no failure. Not
 * by force at once: runc then waits 100 ms between its kill and its first look, even where nothing is left to kill.
 */
export const runDelete = async (command: RuntimeCommand, id: string, signal: AbortSignal): Promise<void> => {
  const isThere = () => existsSync(join(command.stateRoot, id));
  if (!isThere()) return;
  if ((await run(command, ["delete", id], signal)).code === 0 || !isThere()) return;
  const { code, stderr } = await run(command, ["delete", "--force", id], signal);
  if (code !== 0 && isThere())
    throw new RuntimeError("unknown", `Cannot remove container "${id}": ${failureOf(stderr)}`);
};
