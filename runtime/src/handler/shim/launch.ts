import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fromBinary } from "@bufbuild/protobuf";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { DeleteResponseSchema } from "@bulkhead/lib/gen/shim_task_v3_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { connectSocket } from "@bulkhead/lib/ttrpc/socket.ts";
import { type Bootstrap, bootstrapParams, parseBootstrap } from "./bootstrap.ts";

/** Shims keep what they own apart by namespace; Bulkhead has one. */
export const namespace = "bulkhead";

export type LaunchContext = {
  config: Pick<ShimHandlerConfig, "binary" | "env" | "runsc">;
  /** Where shims put their sockets. Short: it is part of a socket's path. */
  socketDir: string;
  /** Socket that takes the shim's events, "" for none. */
  eventsAddress: string;
};

const maxOutput = 64 << 10;

/**
 * Starts the shim of a pod in its bundle and returns where it listens. BootstrapParams first; a shim that refuses
 * them gets an empty stdin. `start` ends, the shim itself stays in a process group of its own.
 */
export async function launchShim(
  context: LaunchContext,
  id: string,
  bundle: string,
  signal: AbortSignal,
): Promise<Bootstrap> {
  mkdirSync(context.socketDir, { recursive: true, mode: 0o711 });
  const params = bootstrapParams({
    id,
    namespace,
    ttrpcAddress: context.eventsAddress,
    grpcAddress: grpcAddress(context),
    socketDir: context.socketDir,
  });
  let run = await runShim(context, id, bundle, ["start"], params, signal);
  // A shim that may not lower its OOM score fails every time, whatever it is fed.
  if (run.code !== 0 && lowersOomScore(run.stderr)) return await serveDirectly(context, id, bundle, signal);
  if (run.code !== 0) {
    const first = run;
    run = await runShim(context, id, bundle, ["start"], undefined, signal);
    if (run.code !== 0 && lowersOomScore(run.stderr)) return await serveDirectly(context, id, bundle, signal);
    if (run.code !== 0)
      throw new RuntimeError(
        "internal",
        `Cannot start the shim ${context.config.binary}: exit code ${run.code}: ${(run.stderr || first.stderr).trim()}`,
      );
  }
  return parseBootstrap(run.stdout);
}

/**
 * `SHIM delete`: frees what a dead shim left of a container (its processes, mounts and cgroups).
 * undefined when the shim found nothing that it could free.
 */
export async function deleteLeftovers(
  context: LaunchContext,
  id: string,
  bundle: string,
  signal: AbortSignal,
): Promise<{ code: number } | undefined> {
  if (!existsSync(bundle)) return undefined;
  const run = await runShim(context, id, bundle, ["-bundle", bundle, "delete"], undefined, signal);
  if (run.code !== 0) return undefined;
  return { code: fromBinary(DeleteResponseSchema, run.stdout).exitStatus };
}

const grpcAddress = (context: LaunchContext) => join(context.socketDir, "none.sock");

const argumentsOf = (context: LaunchContext, id: string): string[] => [
  "-namespace",
  namespace,
  // Nothing listens there: shims hash it into their socket's name and call it never.
  "-address",
  grpcAddress(context),
  // Kata's shim refuses an empty one; Bulkhead takes events on a socket and needs no publisher.
  "-publish-binary",
  "/bin/true",
  "-id",
  id,
];

/** Nothing of our own environment: a variable such as KATA_CONF_FILE would outrank the profile's configuration. */
const environment = ({ config, eventsAddress, ...context }: LaunchContext): NodeJS.ProcessEnv => ({
  PATH: [
    ...new Set([
      dirname(config.binary),
      ...(config.runsc ? [dirname(config.runsc.binary)] : []),
      "/usr/local/sbin",
      "/usr/local/bin",
      "/usr/sbin",
      "/usr/bin",
      "/sbin",
      "/bin",
    ]),
  ].join(":"),
  ...config.env,
  TTRPC_ADDRESS: eventsAddress,
  GRPC_ADDRESS: grpcAddress({ config, eventsAddress, ...context }),
  NAMESPACE: namespace,
  MAX_SHIM_VERSION: "2",
  GOMAXPROCS: "2",
});

async function runShim(
  context: LaunchContext,
  id: string,
  bundle: string,
  command: string[],
  stdin: Uint8Array | undefined,
  signal: AbortSignal,
): Promise<{ code: number; stdout: Buffer; stderr: string }> {
  const child = spawn(context.config.binary, [...argumentsOf(context, id), ...command], {
    cwd: bundle,
    env: environment(context),
    detached: true,
    stdio: ["pipe", "pipe", "pipe"],
    signal,
  });
  child.stdin.on("error", () => {});
  child.stdin.end(stdin);
  const [stdout, stderr] = [bounded(child.stdout), bounded(child.stderr)];
  const code = await exitOf(child);
  return { code, stdout: stdout(), stderr: stderr().toString() };
}

const exitOf = (child: ChildProcess): Promise<number> =>
  new Promise((resolve, reject) => {
    child.once("error", (error) =>
      reject(
        error.name === "AbortError"
          ? new RuntimeError("deadline-exceeded", "The shim did not start in time", { cause: error })
          : new RuntimeError("failed-precondition", `Cannot run the shim: ${error.message}`, {
              cause: error,
            }),
      ),
    );
    // "close" comes after all output; but the shim that stays behind may have inherited the pipes.
    child.once("close", (code) => resolve(code ?? 255));
    child.once("exit", (code) => setTimeout(() => resolve(code ?? 255), 200).unref());
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

/**
 * gVisor's shim gives itself the OOM score -999 and fails when it may not, which is so wherever the daemon lacks
 * CAP_SYS_RESOURCE (a container, a nested node).
 */
const lowersOomScore = (stderr: string): boolean => /OOM score/i.test(stderr) && !mayLowerOomScore();

let lowering: boolean | undefined;
const mayLowerOomScore = (): boolean => {
  lowering ??= (() => {
    const file = "/proc/self/oom_score_adj";
    const before = readFileSync(file, "utf8");
    try {
      writeFileSync(file, "-999");
      writeFileSync(file, before);
      return true;
    } catch {
      return false;
    }
  })();
  return lowering;
};

/** The socket's file is there before anybody accepts. */
const listens = async (address: string, signal: AbortSignal): Promise<boolean> => {
  try {
    (await connectSocket(address, signal)).destroy();
    return true;
  } catch {
    return false;
  }
};

/**
 * What `start` does at its core, without the OOM score: the shim run with no command is the server itself, on the
 * socket that -socket names. The name is relative to the bundle, so that no path is too long for it.
 */
async function serveDirectly(
  context: LaunchContext,
  id: string,
  bundle: string,
  signal: AbortSignal,
): Promise<Bootstrap> {
  const address = `unix://${join(bundle, "shim.sock")}`;
  rmSync(join(bundle, "shim.sock"), { force: true });
  // The shim removes the socket named here when it ends.
  writeFileSync(join(bundle, "address"), address);
  const child = spawn(context.config.binary, [...argumentsOf(context, id), "-socket", "shim.sock"], {
    cwd: bundle,
    env: environment(context),
    detached: true,
    stdio: "ignore",
  });
  let failed: string | undefined;
  child.once("error", (error) => {
    failed = error.message;
  });
  child.once("exit", (code, signo) => {
    failed ??= `it ended at once with ${signo ?? `code ${code}`}`;
  });
  child.unref();
  if (child.pid !== undefined) writeFileSync(join(bundle, "shim.pid"), String(child.pid));
  try {
    while (!(await listens(address, signal))) {
      if (failed)
        throw new RuntimeError("internal", `Cannot start the shim ${context.config.binary}: ${failed}`);
      await sleep(2, undefined, { signal });
    }
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
  return { version: 2, address, protocol: "ttrpc" };
}
