import type { Socket } from "node:net";
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodBiDiStreaming,
  type DescMethodClientStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { RequestSchema, ResponseSchema } from "../gen/ttrpc_pb.js";
import { messageOf, RuntimeError } from "../std/errors.ts";
import { span } from "../tracing/span.ts";
import { encodeFrame, type Frame, frameDecoder, MessageFlag, MessageType, maxData } from "./frame.ts";
import { connectSocket } from "./socket.ts";
import { cancelled, errorOfStatus } from "./status.ts";

export type CallOptions = {
  signal?: AbortSignal;
  /** Sent to the peer, and kept on this side too. None: the call may last for ever (Wait). */
  timeoutMs?: number;
  metadata?: Record<string, string>;
};

/** A stream of a method with streaming on one side or both. */
export type TtrpcStream<I, O> = {
  send(message: I): void;
  /** No more from this side. */
  closeSend(): void;
  messages: AsyncIterable<O>;
};

type Call<M> =
  M extends DescMethodUnary<infer I, infer O>
    ? (request: MessageInitShape<I>, options?: CallOptions) => Promise<MessageShape<O>>
    : M extends DescMethodServerStreaming<infer I, infer O>
      ? (request: MessageInitShape<I>, options?: CallOptions) => AsyncIterable<MessageShape<O>>
      : M extends DescMethodClientStreaming<infer I, infer O>
        ? (options?: CallOptions) => TtrpcStream<MessageInitShape<I>, MessageShape<O>>
        : M extends DescMethodBiDiStreaming<infer I, infer O>
          ? (options?: CallOptions) => TtrpcStream<MessageInitShape<I>, MessageShape<O>>
          : never;

/** A service's methods as functions, typed by its descriptor. */
export type TtrpcClient<S extends DescService> = { [K in keyof S["method"]]: Call<S["method"][K]> };

/** What may wait for a peer that does not read. */
const maxUnread = 2 * maxData;

/** One stream that waits for frames of the peer. */
type Waiting = {
  frame(frame: Frame): void;
  fail(error: RuntimeError): void;
};

/**
 * A connection to a ttrpc server on a Unix socket. Calls share it, and replies may come in any order. When it
 * closes, every call that waits is rejected with `unavailable`; it does not reconnect, since for a shim a closed
 * connection means that the shim is dead.
 */
export class TtrpcConnection implements Disposable {
  /** Settles when the connection is gone, with the reason. */
  readonly closed: Promise<RuntimeError>;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  #end: RuntimeError | undefined;

  constructor(socket: Socket, name = "the peer") {
    this.#socket = socket;
    const decode = frameDecoder();
    socket.on("data", (chunk: Buffer) => {
      for (const frame of decode(chunk)) {
        // Out of step, or not ttrpc at all: what follows means nothing, and calls would wait for ever.
        if (frame.type !== MessageType.response && frame.type !== MessageType.data) {
          socket.destroy(new Error(`it sent a frame of type ${frame.type}, which no server sends`));
          return;
        }
        const waiting = this.#waiting.get(frame.streamId);
        if (!waiting) continue;
        if ("oversized" in frame)
          waiting.fail(
            new RuntimeError(
              "resource-exhausted",
              `The answer of ${name} has ${frame.oversized} bytes, more than ${maxData}`,
            ),
          );
        else waiting.frame(frame);
      }
    });
    let cause: Error | undefined;
    socket.on("error", (error) => {
      cause = error;
    });
    this.closed = new Promise((resolve) => {
      socket.on("close", () => {
        this.#end = new RuntimeError(
          "unavailable",
          `The connection to ${name} is closed${cause ? `: ${messageOf(cause)}` : ""}`,
        );
        for (const waiting of [...this.#waiting.values()]) waiting.fail(this.#end);
        resolve(this.#end);
      });
    });
  }

  /** Connects to `unix:///path` or a path, however long. */
  static async connect(address: string, signal: AbortSignal): Promise<TtrpcConnection> {
    return new TtrpcConnection(await connectSocket(address, signal), address);
  }

  get open(): boolean {
    return this.#end === undefined && !this.#socket.destroyed;
  }

  close(): void {
    this.#socket.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Lets the process end although the connection is open. */
  unref(): void {
    this.#socket.unref();
  }

  /** One request, one response; bytes of the messages. A span where work is traced, unless it may last for ever. */
  unary(
    service: string,
    method: string,
    payload: Uint8Array,
    options: CallOptions = {},
  ): Promise<Uint8Array> {
    const ask = (): Promise<Uint8Array> => this.#unary(service, method, payload, options);
    const name = `${service}/${method}`;
    return options.timeoutMs === undefined
      ? ask()
      : span(name, { "rpc.system.name": "ttrpc", "rpc.method": name }, ask, "client");
  }

  #unary(service: string, method: string, payload: Uint8Array, options: CallOptions): Promise<Uint8Array> {
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    const stream = this.#open(service, method, payload, 0, options, {
      frame: (frame) => {
        if (frame.type !== MessageType.response) return;
        stream?.done();
        try {
          resolve(payloadOf(method, frame));
        } catch (error) {
          reject(error);
        }
      },
      fail: (error) => {
        stream?.done();
        reject(error);
      },
    });
    return promise;
  }

  /** A stream; `request` is set when only the server streams. Yields the bytes of the server's messages. */
  stream(
    service: string,
    method: string,
    request: Uint8Array | undefined,
    options: CallOptions = {},
  ): TtrpcStream<Uint8Array, Uint8Array> {
    const received: Uint8Array[] = [];
    let end: { error?: unknown } | undefined;
    let wake = Promise.withResolvers<void>();
    const notify = () => {
      wake.resolve();
      wake = Promise.withResolvers<void>();
    };
    const finish = (error?: unknown) => {
      end ??= error === undefined ? {} : { error };
      stream?.done();
      notify();
    };
    const flags = request ? MessageFlag.remoteClosed : MessageFlag.remoteOpen;
    const stream = this.#open(service, method, request ?? new Uint8Array(), flags, options, {
      frame: (frame) => {
        if (frame.type === MessageType.data) {
          if (!(frame.flags & MessageFlag.noData)) received.push(frame.data);
          if (frame.flags & MessageFlag.remoteClosed) finish();
          else notify();
          return;
        }
        try {
          const payload = payloadOf(method, frame);
          if (payload.length > 0) received.push(payload);
          finish();
        } catch (error) {
          finish(error);
        }
      },
      fail: finish,
    });
    const data = (bytes: Uint8Array, dataFlags: number) => {
      if (end) throw new RuntimeError("failed-precondition", `Cannot send on the closed stream of ${method}`);
      stream?.send({ type: MessageType.data, flags: dataFlags, data: bytes });
    };
    async function* messages() {
      try {
        for (;;) {
          const next = received.shift();
          if (next) yield next;
          else if (end) {
            if ("error" in end) throw end.error;
            return;
          } else await wake.promise;
        }
      } finally {
        finish();
      }
    }
    return {
      send: (bytes) => data(bytes, 0),
      closeSend: () => data(new Uint8Array(), MessageFlag.remoteClosed | MessageFlag.noData),
      messages: messages(),
    };
  }

  #open(
    service: string,
    method: string,
    payload: Uint8Array,
    flags: number,
    options: CallOptions,
    waiting: Waiting,
  ): { send(frame: Omit<Frame, "streamId">): void; done(): void } | undefined {
    if (this.#end || this.#socket.destroyed) {
      // On a later turn: the caller has not got our return value yet.
      queueMicrotask(() =>
        waiting.fail(this.#end ?? new RuntimeError("unavailable", "The connection is closed")),
      );
      return undefined;
    }
    const { signal, timeoutMs, metadata = {} } = options;
    const data = toBinary(
      RequestSchema,
      create(RequestSchema, {
        service,
        method,
        payload,
        timeoutNano: timeoutMs ? BigInt(Math.ceil(timeoutMs)) * 1_000_000n : 0n,
        metadata: Object.entries(metadata).map(([key, value]) => ({ key, value })),
      }),
    );
    const streamId = this.#nextId;
    const problem = signal?.aborted
      ? cancelled(method, signal)
      : data.length > maxData
        ? new RuntimeError("resource-exhausted", `${method}: the request has more than ${maxData} bytes`)
        : this.#socket.writableLength > maxUnread
          ? new RuntimeError("deadline-exceeded", `${method}: the peer has not read what it was sent before`)
          : undefined;
    if (problem) {
      queueMicrotask(() => waiting.fail(problem));
      return undefined;
    }
    this.#nextId += 2;
    const abort = () => waiting.fail(cancelled(method, signal as AbortSignal));
    signal?.addEventListener("abort", abort, { once: true });
    // The peer has the same deadline; a little later here, so that its better message wins.
    const timer = timeoutMs
      ? setTimeout(
          () =>
            waiting.fail(
              new RuntimeError("deadline-exceeded", `${method}: no answer within ${timeoutMs} ms`),
            ),
          timeoutMs + 50,
        )
      : undefined;
    this.#waiting.set(streamId, waiting);
    const send = (frame: Omit<Frame, "streamId">) => this.#socket.write(encodeFrame({ streamId, ...frame }));
    send({ type: MessageType.request, flags, data });
    return {
      send,
      done: () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        this.#waiting.delete(streamId);
      },
    };
  }
}

function payloadOf(method: string, frame: Frame): Uint8Array {
  let response: MessageShape<typeof ResponseSchema>;
  try {
    response = fromBinary(ResponseSchema, frame.data);
  } catch (error) {
    throw new RuntimeError("internal", `${method}: the answer is no ttrpc response`, { cause: error });
  }
  if (response.status && response.status.code !== 0) throw errorOfStatus(method, response.status);
  return response.payload;
}

/**
 * The methods of `service` over a connection. `typeName` calls it by another name: the task service has the same
 * messages in versions 2 and 3 and differs in its package alone.
 */
export function createTtrpcClient<S extends DescService>(
  service: S,
  transport: Pick<TtrpcConnection, "unary" | "stream">,
  defaults: { typeName?: string; metadata?: Record<string, string> } = {},
): TtrpcClient<S> {
  const name = defaults.typeName ?? service.typeName;
  const withDefaults = (options: CallOptions = {}): CallOptions => ({
    ...options,
    metadata: { ...defaults.metadata, ...options.metadata },
  });
  const encode = <D extends DescMessage>(schema: D, message: MessageInitShape<D>) =>
    toBinary(schema, create(schema, message));
  const open = (method: DescMethod, request: Uint8Array | undefined, options?: CallOptions) => {
    const stream = transport.stream(name, method.name, request, withDefaults(options));
    return {
      send: (message: MessageInitShape<DescMessage>) => stream.send(encode(method.input, message)),
      closeSend: stream.closeSend,
      messages: decodeAll(method.output, stream.messages),
    };
  };
  const callOf = (method: DescMethod) => {
    switch (method.methodKind) {
      case "unary":
        return async (request: MessageInitShape<DescMessage>, options?: CallOptions) =>
          fromBinary(
            method.output,
            await transport.unary(name, method.name, encode(method.input, request), withDefaults(options)),
          );
      case "server_streaming":
        return (request: MessageInitShape<DescMessage>, options?: CallOptions) =>
          open(method, encode(method.input, request), options).messages;
      case "client_streaming":
      case "bidi_streaming":
        return (options?: CallOptions) => open(method, undefined, options);
    }
  };
  return Object.fromEntries(
    service.methods.map((method) => [method.localName, callOf(method)]),
  ) as TtrpcClient<S>;
}

async function* decodeAll<D extends DescMessage>(
  schema: D,
  messages: AsyncIterable<Uint8Array>,
): AsyncIterable<MessageShape<D>> {
  for await (const bytes of messages) yield fromBinary(schema, bytes);
}
