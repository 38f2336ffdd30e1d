import type { Duplex } from "node:stream";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { streamCreationTimeout } from "./channels.ts";
import { SpdyConnection, type SpdyStream } from "./spdy/connection.ts";
import type { StreamingBackend } from "./streaming.ts";
import type { UnreadOfClient } from "./unread.ts";

/** After the client half-closed, the pod's side may stay silent this long before the connection is given up. */
const halfCloseIdle = 30_000;
/** Connections of one client that wait for their second stream. */
const maxPending = 128;

export const portForwardProtocol = "portforward.k8s.io";

/**
 * Serves port-forward on a connection (SPDY, or SPDY inside WebSocket messages): each forwarded connection is a
 * pair of streams with the same requestid, `error` and `data`, that name the port in their headers.
 */
export function servePortForward(
  backend: StreamingBackend,
  podId: string,
  transport: Duplex,
  unread: UnreadOfClient,
): void {
  type Pair = { error?: SpdyStream; data?: SpdyStream; timer: NodeJS.Timeout };
  const pending = new Map<string, Pair>();
  const connection = new SpdyConnection(transport, unread, (stream) => {
    const type = stream.headers.get("streamtype");
    const port = Number(stream.headers.get("port"));
    if ((type !== "error" && type !== "data") || !Number.isInteger(port) || port < 1 || port > 65535) {
      stream.destroy();
      return;
    }
    // Clients without request ids open the error stream right before its data stream.
    const id = stream.headers.get("requestid") ?? `${type === "error" ? stream.id : stream.id - 2}`;
    let pair = pending.get(id);
    if (!pair) {
      if (pending.size >= maxPending) return void stream.destroy();
      const timer = setTimeout(() => {
        pending.delete(id);
        stream.destroy();
      }, streamCreationTimeout);
      pair = { timer };
      pending.set(id, pair);
    }
    if (pair[type]) return void stream.destroy();
    pair[type] = stream;
    if (pair.error && pair.data) {
      clearTimeout(pair.timer);
      pending.delete(id);
      void forward(backend, podId, port, pair.error, pair.data, connection.closed);
    }
  });
  connection.closed.addEventListener("abort", () => {
    for (const { timer } of pending.values()) clearTimeout(timer);
  });
}

async function forward(
  backend: StreamingBackend,
  podId: string,
  port: number,
  error: SpdyStream,
  data: SpdyStream,
  signal: AbortSignal,
): Promise<void> {
  error.resume();
  try {
    const target = await backend.portForward(podId, port, signal);
    await join(data, target);
    error.end();
  } catch (cause) {
    error.end(`error forwarding port ${port} to pod ${podId}: ${messageOf(cause)}`);
    data.end();
    data.resume();
  }
}

/** Copies both ways until the pod's side has ended, passing half-closes on. */
export function join(client: Duplex, target: Duplex): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(idle);
      target.destroy();
      resolve();
    };
    let idle: NodeJS.Timeout | undefined;
    let clientEnded = false;
    client.pipe(target);
    target.pipe(client);
    const silent = () => {
      clearTimeout(idle);
      if (clientEnded) idle = setTimeout(done, halfCloseIdle);
    };
    client.once("end", () => {
      clientEnded = true;
      silent();
    });
    target.on("data", silent);
    target.once("error", () => {
      client.end();
      done();
    });
    target.once("close", done);
    client.once("close", done);
    client.once("finish", () => {
      if (target.writableFinished) done();
      else target.once("finish", done);
    });
  });
}
