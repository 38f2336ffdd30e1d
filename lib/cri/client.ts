import {
  create,
  type DescMessage,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { Client, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { ImageService, RuntimeService } from "../gen/cri_pb.js";
import { type ErrorCode, RuntimeError } from "../std/errors.ts";
import { traceparent } from "../tracing/span.ts";

/** A method of a service descriptor as a function, of a whole message or of what one is made from. */
type Method<M, From extends "message" | "init"> = M extends {
  methodKind: infer K;
  input: infer I extends DescMessage;
  output: infer O extends DescMessage;
}
  ? (
      request: From extends "init" ? MessageInitShape<I> : MessageShape<I>,
      signal: AbortSignal,
    ) => K extends "unary"
      ? Promise<MessageShape<O>>
      : K extends "server_streaming"
        ? AsyncIterable<MessageShape<O>>
        : never
  : never;
type Methods<S extends DescService, From extends "message" | "init"> = {
  [K in keyof S["method"]]: Method<S["method"][K], From>;
};
type Services<From extends "message" | "init"> = {
  runtime: Methods<typeof RuntimeService, From>;
  image: Methods<typeof ImageService, From>;
};

/** Both services of CRI v1 as functions. Errors are RuntimeErrors. */
export type CriServices = Services<"message">;

/** The services behind a CRI socket; errors carry the code and the words of the engine's answer. */
export type CriClient = Services<"init"> & Disposable & { socket: string };

/** kubelet's own limit for a message. */
const maxMessage = 16 * 1024 * 1024;

/** A client of the engine behind `socket`. Connects when first used and again whenever the engine comes back. */
export function connectCri(socket: string): CriClient {
  const client = new Client(`unix:${socket}`, credentials.createInsecure(), {
    "grpc.default_authority": "localhost",
    "grpc.max_receive_message_length": maxMessage,
    "grpc.max_send_message_length": maxMessage,
    // An engine that restarts is back within seconds: neither backoff nor a shared channel may keep its pods away.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,
    "grpc.enable_retries": 0,
  });
  const methods = <S extends DescService>(service: S): Methods<S, "init"> =>
    Object.fromEntries(
      service.methods.map((method) => {
        const { name } = method;
        const path = `/${service.typeName}/${name}`;
        const encode = (message: MessageInitShape<DescMessage>) =>
          Buffer.from(toBinary(method.input, create(method.input, message)));
        const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
        const unary = (request: MessageInitShape<DescMessage>, signal: AbortSignal) =>
          new Promise((resolve, reject) => {
            if (signal.aborted) return reject(aborted(name, signal));
            const call = client.makeUnaryRequest(
              path,
              encode,
              decode,
              request,
              traced(),
              (error, response) => {
                signal.removeEventListener("abort", cancel);
                if (error === null) resolve(response);
                else reject(signal.aborted ? aborted(name, signal) : answered(error, socket));
              },
            );
            const cancel = () => call.cancel();
            signal.addEventListener("abort", cancel, { once: true });
          });
        async function* streaming(request: MessageInitShape<DescMessage>, signal: AbortSignal) {
          if (signal.aborted) throw aborted(name, signal);
          const call = client.makeServerStreamRequest(path, encode, decode, request, traced());
          const cancel = () => call.cancel();
          signal.addEventListener("abort", cancel, { once: true });
          try {
            yield* call;
          } catch (error) {
            throw signal.aborted ? aborted(name, signal) : answered(error as ServiceError, socket);
          } finally {
            signal.removeEventListener("abort", cancel);
            call.cancel();
          }
        }
        return [method.localName, method.methodKind === "unary" ? unary : streaming];
      }),
    ) as Methods<S, "init">;
  return {
    runtime: methods(RuntimeService),
    image: methods(ImageService),
    socket,
    [Symbol.dispose]: () => client.close(),
  };
}

/** Tells the engine the trace that a call belongs to. */
const traced = (): Metadata => {
  const metadata = new Metadata();
  const parent = traceparent();
  if (parent !== undefined) metadata.set("traceparent", parent);
  return metadata;
};

const aborted = (method: string, { reason }: AbortSignal): RuntimeError =>
  reason instanceof Error && reason.name === "TimeoutError"
    ? new RuntimeError("deadline-exceeded", `${method} was not answered in time`)
    : new RuntimeError("cancelled", `${method} was cancelled by the caller`);

const codes: Partial<Record<status, ErrorCode>> = {
  [status.NOT_FOUND]: "not-found",
  [status.ALREADY_EXISTS]: "already-exists",
  [status.INVALID_ARGUMENT]: "invalid-argument",
  [status.FAILED_PRECONDITION]: "failed-precondition",
  [status.RESOURCE_EXHAUSTED]: "resource-exhausted",
  [status.DEADLINE_EXCEEDED]: "deadline-exceeded",
  [status.CANCELLED]: "cancelled",
  [status.PERMISSION_DENIED]: "permission-denied",
  [status.UNIMPLEMENTED]: "unimplemented",
  [status.INTERNAL]: "internal",
};

/** The library's words for a socket that nobody serves are many; the cause in them is enough. */
const causeIn = (details: string): string => /connect E[A-Z]+ \S+/.exec(details)?.[0] ?? details;

/** The engine's own answer keeps its code and words; kubelet matches both. An engine that is away is named. */
const answered = (error: ServiceError, socket: string): RuntimeError =>
  error.code === status.UNAVAILABLE
    ? new RuntimeError("unavailable", `The engine at ${socket} does not answer: ${causeIn(error.details)}`, {
        cause: error,
      })
    : new RuntimeError(codes[error.code] ?? "unknown", error.details, { cause: error });
