import type { Duplex } from "node:stream";
import { finished } from "node:stream/promises";
import { type Channels, streamCreationTimeout, type Wanted } from "../channels.ts";
import { statusJson, statusText } from "../status.ts";
import type { UnreadOfClient } from "../unread.ts";
import { SpdyConnection, type SpdyStream } from "./connection.ts";

/** Subprotocols of remotecommand over SPDY that we speak, best first. The first version has no name on old clients. */
export const spdyProtocols = [
  "v4.channel.k8s.io",
  "v3.channel.k8s.io",
  "v2.channel.k8s.io",
  "channel.k8s.io",
] as const;
export type SpdyProtocol = (typeof spdyProtocols)[number];

/** Waits until the client has opened every stream that the request names, and hands them out. */
export async function spdyChannels(
  transport: Duplex,
  protocol: SpdyProtocol,
  wanted: Wanted,
  unread: UnreadOfClient,
): Promise<Channels> {
  const resizable = wanted.tty && (protocol === "v4.channel.k8s.io" || protocol === "v3.channel.k8s.io");
  const expected = new Set<string>(["error"]);
  if (wanted.stdin) expected.add("stdin");
  if (wanted.stdout) expected.add("stdout");
  if (wanted.stderr && !wanted.tty) expected.add("stderr");
  if (resizable) expected.add("resize");

  const streams = new Map<string, SpdyStream>();
  const complete = Promise.withResolvers<void>();
  const connection = new SpdyConnection(transport, unread, (stream) => {
    const type = stream.headers.get("streamtype") ?? "";
    if (!expected.has(type) || streams.has(type)) {
      stream.destroy();
      return;
    }
    streams.set(type, stream);
    if (streams.size === expected.size) complete.resolve();
  });
  const timer = setTimeout(
    () => complete.reject(new Error("client opened no streams in time")),
    streamCreationTimeout,
  );
  connection.closed.addEventListener("abort", () => complete.reject(new Error("client hung up")));
  try {
    await complete.promise;
  } catch (error) {
    connection.close();
    throw error;
  } finally {
    clearTimeout(timer);
  }

  const stream = (type: string) => streams.get(type) as SpdyStream;
  const out = [streams.get("stdout"), streams.get("stderr")].filter((s) => s !== undefined);
  return {
    ...(wanted.stdin && { stdin: stream("stdin") }),
    ...(wanted.stdout && { stdout: stream("stdout") }),
    ...(wanted.stderr && !wanted.tty && { stderr: stream("stderr") }),
    ...(resizable && { resize: stream("resize") }),
    closed: connection.closed,
    async finish(outcome) {
      const error = stream("error");
      error.end(protocol === "v4.channel.k8s.io" ? statusJson(outcome) : statusText(outcome));
      for (const each of out) each.end();
      await Promise.allSettled([error, ...out].map((each) => finished(each, { readable: false })));
      await connection.finish();
    },
  };
}
