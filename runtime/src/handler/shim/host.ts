import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import { TaskExitSchema, TaskOOMSchema } from "@bulkhead/lib/gen/shim_events_pb.js";
import { Events } from "@bulkhead/lib/gen/shim_events_service_pb.js";
import { serveTtrpc } from "@bulkhead/lib/ttrpc/server.ts";
import type { Linux } from "../../linux/linux.ts";
import { createReadiness, type Readiness } from "../../linux/readiness.ts";
import { grpcAddress } from "./command.ts";
import { serveNoEngine } from "./engine.ts";
import { type CopyPipe, openCopyPipe } from "./output.ts";
import { takePublished } from "./published.ts";

/** What all shim handlers of a daemon share. */
export type ShimHost = AsyncDisposable & {
  /** Where shims put their sockets. */
  socketDir: string;
  /** Takes what shims report. Hints only: the truth of an exit is Wait. */
  eventsAddress: string;
  /** Program that does the same for shims that know no such socket. */
  publisher: string;
  /** True once when an out-of-memory event was seen for the container. */
  tookOom(containerId: string): boolean;
  /** Calls `listener` when a shim reports that a container's first process ended. */
  onExit(containerId: string, listener: () => void): Disposable;
  readiness: Readiness;
  copyPipe: CopyPipe;
};

/** More than containers on a node; what is over it was of containers that nobody asked about. */
const maxOomEvents = 4096;
/** Longer than any id of ours. */
const maxId = 128;
/** An event's bytes: those that we need have a hundred. */
const maxEvent = 64 << 10;
/** A shim needs one. */
const maxConnections = 4096;
/** A MiB a second of all shims together: one that sends without end waits. */
const bytesPerMs = 1 << 10;

/**
 * `directory` is on tmpfs, short (socket paths start with it) and the same after a restart of the daemon; `programs`
 * is where programs may be run from.
 */
export async function openShimHost(
  directory: string,
  programs: string,
  linux: Pick<Linux, "mkfifo">,
): Promise<ShimHost> {
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  const oom = new Set<string>();
  const listeners = new Map<string, () => void>();
  const take = ({ typeUrl, value }: Any): void => {
    switch (typeUrl.slice(typeUrl.lastIndexOf("/") + 1)) {
      case TaskOOMSchema.typeName: {
        const { containerId } = fromBinary(TaskOOMSchema, value);
        if (containerId.length <= maxId) oom.add(containerId);
        for (const oldest of oom) {
          if (oom.size <= maxOomEvents) break;
          oom.delete(oldest);
        }
        break;
      }
      case TaskExitSchema.typeName: {
        const { containerId, id } = fromBinary(TaskExitSchema, value);
        // Of another id it is an exec's.
        if (id === containerId || id === "") listeners.get(containerId)?.();
        break;
      }
    }
  };
  await using stack = new AsyncDisposableStack();
  const eventsAddress = join(directory, "events.sock");
  const server = stack.use(
    await serveTtrpc(eventsAddress, { maxFrame: maxEvent, maxConnections, bytesPerMs }),
  );
  server.add(Events, {
    forward: async ({ envelope }) => {
      if (envelope?.event) take(envelope.event);
      return {};
    },
  });
  const socketDir = join(directory, "s");
  stack.use(await serveNoEngine(grpcAddress({ socketDir })));
  const published = stack.use(takePublished(join(directory, "published"), programs, take));
  const copyPipe = stack.use(openCopyPipe(directory, linux));
  const resources = stack.move();
  return {
    socketDir,
    eventsAddress,
    publisher: published.program,
    tookOom: (id) => oom.delete(id),
    onExit: (id, listener) => {
      listeners.set(id, listener);
      return { [Symbol.dispose]: () => void listeners.delete(id) };
    },
    readiness: createReadiness(),
    copyPipe,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}
