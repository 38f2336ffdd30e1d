import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { TaskOOMSchema } from "@bulkhead/lib/gen/shim_events_pb.js";
import { Events } from "@bulkhead/lib/gen/shim_events_service_pb.js";
import { serveTtrpc } from "@bulkhead/lib/ttrpc/server.ts";
import type { Linux } from "../../linux/linux.ts";
import { createReadiness, type Readiness } from "../../linux/readiness.ts";
import { type CopyPipe, openCopyPipe } from "./output.ts";

/** What all shim handlers of a daemon share. */
export type ShimHost = AsyncDisposable & {
  /** Where shims put their sockets. */
  socketDir: string;
  /** Takes what shims report. Hints only: the truth of an exit is Wait. */
  eventsAddress: string;
  /** True once when an out-of-memory event was seen for the container. */
  tookOom(containerId: string): boolean;
  readiness: Readiness;
  copyPipe: CopyPipe;
};

/** More than containers on a node; what is over it was of containers that nobody asked about. */
const maxOomEvents = 4096;

/** `directory` is on tmpfs, short (socket paths start with it) and the same after a restart of the daemon. */
export async function openShimHost(directory: string, linux: Pick<Linux, "mkfifo">): Promise<ShimHost> {
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  const oom = new Set<string>();
  await using stack = new AsyncDisposableStack();
  const eventsAddress = join(directory, "events.sock");
  const server = stack.use(await serveTtrpc(eventsAddress));
  server.add(Events, {
    forward: async ({ envelope }) => {
      if (envelope?.topic === "/tasks/oom" && envelope.event) {
        oom.add(fromBinary(TaskOOMSchema, envelope.event.value).containerId);
        for (const oldest of oom) {
          if (oom.size <= maxOomEvents) break;
          oom.delete(oldest);
        }
      }
      return {};
    },
  });
  const copyPipe = stack.use(openCopyPipe(directory, linux));
  const resources = stack.move();
  return {
    socketDir: join(directory, "s"),
    eventsAddress,
    tookOom: (id) => oom.delete(id),
    readiness: createReadiness(),
    copyPipe,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}
