import { dirname, join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type Program, startProgram } from "../../linux/start-program.ts";
import { identifyStarted } from "./processes.ts";

/** Shims keep what they own apart by namespace; Bulkhead has one. */
export const namespace = "bulkhead";

export type LaunchContext = {
  config: Pick<ShimHandlerConfig, "binary" | "env" | "runsc">;
  /** Where shims put their sockets. Short: it is part of a socket's path. */
  socketDir: string;
  /** Socket that takes the shim's events, "" for none. */
  eventsAddress: string;
  /** Program that takes the events of a shim that knows no such socket. */
  publisher: string;
};

/** What one call of a shim's binary came to. */
export type ShimRun = {
  /** 255 for one that a signal ended. */
  code: number;
  stdout: Buffer;
  stderr: string;
  /** When it began, in the kernel's clock ticks since boot: what it started is not older. */
  since: bigint;
};

const maxOutput = 64 << 10;

export const grpcAddress = (context: Pick<LaunchContext, "socketDir">): string =>
  join(context.socketDir, "none.sock");

export const argumentsOf = (context: LaunchContext, id: string): string[] => [
  "-namespace",
  namespace,
  // Shims hash it into their socket's name. Nobody there has a service of containerd's.
  "-address",
  grpcAddress(context),
  // Kata's shim refuses an empty one; shims of before 2019 report their events by it.
  "-publish-binary",
  context.publisher,
  "-id",
  id,
];

/** Nothing of our own environment: a variable such as KATA_CONF_FILE would outrank the profile's configuration. */
export const environment = (context: LaunchContext): NodeJS.ProcessEnv => ({
  PATH: [
    ...new Set([
      dirname(context.config.binary),
      ...(context.config.runsc ? [dirname(context.config.runsc.binary)] : []),
      "/usr/local/sbin",
      "/usr/local/bin",
      "/usr/sbin",
      "/usr/bin",
      "/sbin",
      "/bin",
    ]),
  ].join(":"),
  ...context.config.env,
  TTRPC_ADDRESS: context.eventsAddress,
  GRPC_ADDRESS: grpcAddress(context),
  NAMESPACE: namespace,
  MAX_SHIM_VERSION: "2",
  GOMAXPROCS: "2",
});

/** Runs the shim's binary in a bundle to its end; one that does not end in time is killed with all that it forked. */
export async function runShim(
  context: LaunchContext,
  id: string,
  bundle: string,
  command: string[],
  stdin: Uint8Array | undefined,
  signal: AbortSignal,
): Promise<ShimRun> {
  signal.throwIfAborted();
  const child = startProgram(context.config.binary, [...argumentsOf(context, id), ...command], {
    cwd: bundle,
    env: environment(context),
    detached: true,
    stdio: ["pipe", "pipe", "pipe"],
  });
  child.stdin.on("error", () => {});
  const since = sinceOf(child);
  child.stdin.end(stdin ?? "");
  const [stdout, stderr] = [bounded(child.stdout), bounded(child.stderr)];
  const code = await exitOf(child, `"${context.config.binary} … ${command.at(-1)}"`, signal);
  return { code, stdout: stdout(), stderr: stderr().toString().trim(), since };
}

/** When it was started, in clock ticks since boot; 0 for one that is gone again. */
const sinceOf = (child: Program): bigint => {
  try {
    return identifyStarted(child)?.startTime ?? 0n;
  } catch (error) {
    for (const stream of child.stdio) stream?.destroy();
    throw error;
  }
};

const exitOf = (child: Program, what: string, signal: AbortSignal): Promise<number> =>
  new Promise((resolve, reject) => {
    const abort = () => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It ended just now.
      }
      reject(
        new RuntimeError("deadline-exceeded", `The shim did not end ${what} in time`, {
          cause: signal.reason,
        }),
      );
    };
    const done = (code: number | null) => {
      signal.removeEventListener("abort", abort);
      resolve(code ?? 255);
    };
    signal.addEventListener("abort", abort, { once: true });
    child.once("error", (error) => {
      signal.removeEventListener("abort", abort);
      reject(
        new RuntimeError("failed-precondition", `Cannot run the shim: ${error.message}`, { cause: error }),
      );
    });
    // "close" comes after all output; but the shim that stays behind may have inherited the pipes.
    child.once("close", done);
    child.once("exit", (code) => setTimeout(() => done(code), 200).unref());
  });

/** What a stream said, up to a bound. */
const bounded = (stream: NodeJS.ReadableStream): (() => Buffer) => {
  const chunks: Buffer[] = [];
  let length = 0;
  stream.on("data", (chunk: Buffer) => {
    if (length < maxOutput) chunks.push(chunk);
    length += chunk.length;
  });
  return () => Buffer.concat(chunks).subarray(0, maxOutput);
};
