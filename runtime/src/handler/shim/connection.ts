import { Task } from "@bulkhead/lib/gen/shim_task_v3_pb.js";
import { GrpcConnection } from "@bulkhead/lib/grpc/connection.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { createTtrpcClient, type TtrpcClient, TtrpcConnection } from "@bulkhead/lib/ttrpc/client.ts";
import { namespace } from "./command.ts";

export type TaskClient = TtrpcClient<typeof Task>;

/** What calls go over, be it ttrpc or gRPC. */
export type ShimTransport = Pick<TtrpcConnection, "unary" | "stream" | "closed" | "open" | "close">;

/** The namespace, by the name that each of the two has for it. */
export const inNamespace = { "containerd-namespace-ttrpc": namespace, "containerd-namespace": namespace };

/** A connection to a shim, and the task service on it. */
export type ShimConnection = {
  connection: ShimTransport;
  task: TaskClient;
  /** Version of the task service that the shim serves. */
  version: 2 | 3;
  /** The shim's own process, as it says. */
  shimPid: number;
};

const debugForm = 'Others("';

/**
 * runtime-rs answers by the debug form of an error, its causes and stack behind it: what is left is what went wrong, and
 * why. Words of a tenant's may stand in it at any length: no pattern here looks at a place twice.
 */
const plainWords = (message: string): string => {
  const at = message.indexOf(debugForm);
  if (at < 0) return message;
  const lines = message
    .slice(at + debugForm.length)
    .split("\\n")
    .map((line) => line.trim());
  const stack = lines.indexOf("Stack backtrace:");
  const said = (stack < 0 ? lines : lines.slice(0, stack))
    .filter((line) => line !== "" && line !== "Caused by:")
    .map((line) => line.replace(/^\d+: /, ""))
    .join(": ")
    .replaceAll('\\"', '"');
  return message.slice(0, at) + (said.endsWith('")') ? said.slice(0, -2) : said);
};

/**
 * Kata's runtime-rs gives every failure the same code. By its words a task that is not there, or not there yet, is
 * told from what went wrong.
 */
export const withCode = (error: unknown): unknown => {
  if (!hasCode(error, "unknown")) return error;
  const gone = /failed to find (container|process)|process already terminated|runtime not ready/;
  const message = messageOf(error);
  return new RuntimeError(gone.test(message) ? "not-found" : "unknown", plainWords(message), {
    cause: error,
  });
};

/** Versions 2 and 3 have the same messages under another package. */
const taskClient = (connection: ShimTransport, version: 2 | 3): TaskClient => {
  const transport: Pick<TtrpcConnection, "unary" | "stream"> = {
    unary: (...call) =>
      connection.unary(...call).catch((error) => {
        throw withCode(error);
      }),
    stream: (...call) => connection.stream(...call),
  };
  return createTtrpcClient(Task, transport, {
    typeName: `containerd.task.v${version}.Task`,
    metadata: inNamespace,
  });
};

/**
 * Connects and finds the task service: the version that the shim's reply named first, else the other one. The
 * version of a reply is that of the bootstrap protocol, so it is a hint only.
 */
export async function connectShim(
  { address, version: hint, protocol }: { address: string; version: number; protocol?: string | undefined },
  id: string,
  signal: AbortSignal,
): Promise<ShimConnection> {
  const connection: ShimTransport =
    protocol === "grpc"
      ? await GrpcConnection.connect(address, signal)
      : await TtrpcConnection.connect(address, signal);
  const versions = hint >= 3 ? ([3, 2] as const) : ([2, 3] as const);
  try {
    let last: unknown;
    for (const version of versions) {
      const task = taskClient(connection, version);
      try {
        const { shimPid } = await connectTask(task, id, signal);
        return { connection, task, version, shimPid };
      } catch (error) {
        if (!hasCode(error, "unimplemented")) throw error;
        last = error;
      }
    }
    throw last;
  } catch (error) {
    connection.close();
    throw error;
  }
}

/** runc's shim and Kata's find no task before the first Create, which is an answer of the right service too. */
async function connectTask(task: TaskClient, id: string, signal: AbortSignal): Promise<{ shimPid: number }> {
  try {
    return await task.connect({ id }, { signal, timeoutMs: 30_000 });
  } catch (error) {
    if (hasCode(error, "not-found")) return { shimPid: 0 };
    throw error;
  }
}
