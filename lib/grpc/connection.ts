import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import { messageOf, RuntimeError } from "../std/errors.ts";
import type { CallOptions, TtrpcConnection } from "../ttrpc/client.ts";
import { maxData } from "../ttrpc/frame.ts";
import { connectSocket } from "../ttrpc/socket.ts";
import { cancelled, errorOfStatus } from "../ttrpc/status.ts";

/** The length of a message and whether it is compressed stand before it. */
const prefix = 5;

/**
 * A connection to a gRPC server on a Unix socket, for unary calls, with the ways of {@link TtrpcConnection}: it does not
 * reconnect, since for a shim a closed connection means that the shim is dead. grpc-js's client does, and hides it.
 */
export class GrpcConnection
  implements Pick<TtrpcConnection, "unary" | "stream" | "closed" | "open" | "close">
{
  readonly closed: Promise<RuntimeError>;
  readonly #session: ClientHttp2Session;
  readonly #name: string;

  constructor(session: ClientHttp2Session, name: string) {
    this.#session = session;
    this.#name = name;
    let cause: Error | undefined;
    session.on("error", (error) => {
      cause = error;
    });
    this.closed = new Promise((resolve) => {
      session.once("close", () => resolve(this.#gone(cause)));
    });
    // A server that goes away in order is gone as well.
    session.once("goaway", () => session.destroy());
  }

  /** Connects to `unix:///path` or a path, however long. */
  static async connect(address: string, signal: AbortSignal): Promise<GrpcConnection> {
    const socket = await connectSocket(address, signal);
    return new GrpcConnection(connect("http://localhost", { createConnection: () => socket }), address);
  }

  get open(): boolean {
    return !this.#session.closed && !this.#session.destroyed;
  }

  close(): void {
    this.#session.destroy();
  }

  stream(): never {
    throw new RuntimeError("unimplemented", "Streams over gRPC are not supported");
  }

  /** One request, one response; bytes of the messages. */
  async unary(
    service: string,
    method: string,
    payload: Uint8Array,
    { signal, timeoutMs, metadata }: CallOptions = {},
  ): Promise<Uint8Array> {
    signal?.throwIfAborted();
    if (!this.open) throw this.#gone();
    const header = Buffer.alloc(prefix);
    header.writeUInt32BE(payload.length, 1);
    const stream = this.#session.request({
      ...metadata,
      ":method": "POST",
      ":path": `/${service}/${method}`,
      "content-type": "application/grpc+proto",
      te: "trailers",
      ...(timeoutMs ? { "grpc-timeout": `${Math.min(Math.ceil(timeoutMs), 99_999_999)}m` } : {}),
    });
    // Also after its answer: a server may answer before it has read all, and fail then.
    stream.on("error", () => {});
    stream.end(Buffer.concat([header, payload]));
    // The peer has the same deadline; a little later here, so that its better message wins.
    const deadline = timeoutMs ? AbortSignal.timeout(timeoutMs + 50) : undefined;
    const ends = [signal, deadline].filter((each) => each !== undefined);
    const either = AbortSignal.any(ends);
    const cancel = () => stream.close(constants.NGHTTP2_CANCEL);
    either.addEventListener("abort", cancel, { once: true });
    try {
      return await answerOf(method, stream);
    } catch (error) {
      if (signal?.aborted) throw cancelled(method, signal);
      if (deadline?.aborted)
        throw new RuntimeError("deadline-exceeded", `${method}: no answer within ${timeoutMs} ms`);
      throw error instanceof RuntimeError ? error : this.#gone(error);
    } finally {
      either.removeEventListener("abort", cancel);
      cancel();
    }
  }

  #gone(cause?: unknown): RuntimeError {
    return new RuntimeError(
      "unavailable",
      `The connection to ${this.#name} is closed${cause === undefined ? "" : `: ${messageOf(cause)}`}`,
    );
  }
}

type Headers = Record<string, string | string[] | number | undefined>;

/** The message of a response, or the error that its status says (grpc, PROTOCOL-HTTP2.md). */
const answerOf = async (method: string, stream: ClientHttp2Stream): Promise<Uint8Array> => {
  let said: Headers = {};
  stream.on("response", (headers) => {
    said = { ...said, ...(headers as Headers) };
  });
  stream.on("trailers", (headers) => {
    said = { ...said, ...(headers as Headers) };
  });
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maxData + prefix) {
      stream.close(constants.NGHTTP2_CANCEL);
      throw new RuntimeError("resource-exhausted", `${method}: the answer has more than ${maxData} bytes`);
    }
    chunks.push(chunk);
  }
  const code = Number(said["grpc-status"] ?? Number.NaN);
  if (Number.isNaN(code))
    throw new RuntimeError(
      "unavailable",
      `${method}: the answer is no gRPC (HTTP ${said[":status"] ?? "?"})`,
    );
  if (code !== 0) throw errorOfStatus(method, { code, message: decoded(String(said["grpc-message"] ?? "")) });
  const body = Buffer.concat(chunks);
  if (body.length < prefix || body[0] !== 0 || body.readUInt32BE(1) !== body.length - prefix)
    throw new RuntimeError("internal", `${method}: the answer is no single gRPC message`);
  return body.subarray(prefix);
};

/** Percent-encoded, or what somebody takes for that. */
const decoded = (text: string): string => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};
