import {
  type DescMessage,
  type DescService,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { ImageService, RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { type ErrorCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Client, credentials, type ServiceError, status } from "@grpc/grpc-js";

/** A method of a protobuf-es service descriptor as a function. */
type Method<M> = M extends {
  methodKind: "unary";
  input: infer I extends DescMessage;
  output: infer O extends DescMessage;
}
  ? (request: MessageShape<I>, signal: AbortSignal) => Promise<MessageShape<O>>
  : M extends {
        methodKind: "server_streaming";
        input: infer I extends DescMessage;
        output: infer O extends DescMessage;
      }
    ? (request: MessageShape<I>, signal: AbortSignal) => AsyncIterable<MessageShape<O>>
    : never;
type Methods<S extends DescService> = { [K in keyof S["method"]]: Method<S["method"][K]> };

/** Both services of CRI v1 as functions. Errors are RuntimeErrors. */
export type CriServices = { runtime: Methods<typeof RuntimeService>; image: Methods<typeof ImageService> };

/** The services of another CRI socket; errors carry the code that the engine answered. */
export type EngineClient = CriServices & {
  socket: string;
  close(): void;
};

/** kubelet's own limit for a message. */
const maxMessage = 16 * 1024 * 1024;

/** A client of the engine behind `socket`. Connects when first used and again whenever the engine comes back. */
export function connectEngine(socket: string): EngineClient {
  const client = new Client(`unix://${socket}`, credentials.createInsecure(), {
    "grpc.max_receive_message_length": maxMessage,
    "grpc.max_send_message_length": maxMessage,
    // An engine that restarts is back within seconds: do not let backoff keep its pods away for longer.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    "grpc.enable_retries": 0,
  });
  const methods = <S extends DescService>(service: S): Methods<S> =>
    Object.fromEntries(
      service.methods.map((method) => {
        const path = `/${service.typeName}/${method.name}`;
        const encode = (message: MessageShape<DescMessage>) => Buffer.from(toBinary(method.input, message));
        const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
        const unary = (request: MessageShape<DescMessage>, signal: AbortSignal) =>
          new Promise((resolve, reject) => {
            if (signal.aborted) return reject(cancelled(method.name));
            const call = client.makeUnaryRequest(path, encode, decode, request, (error, response) => {
              signal.removeEventListener("abort", cancel);
              if (error) reject(engineError(error, socket));
              else resolve(response);
            });
            const cancel = () => call.cancel();
            signal.addEventListener("abort", cancel, { once: true });
          });
        async function* streaming(request: MessageShape<DescMessage>, signal: AbortSignal) {
          const call = client.makeServerStreamRequest(path, encode, decode, request);
          const cancel = () => call.cancel();
          signal.addEventListener("abort", cancel, { once: true });
          try {
            yield* call;
          } catch (error) {
            throw engineError(error as ServiceError, socket);
          } finally {
            signal.removeEventListener("abort", cancel);
            call.cancel();
          }
        }
        return [method.localName, method.methodKind === "unary" ? unary : streaming];
      }),
    ) as Methods<S>;
  return {
    runtime: methods(RuntimeService),
    image: methods(ImageService),
    socket,
    close: () => client.close(),
  };
}

const cancelled = (method: string) => new RuntimeError("cancelled", `${method} was cancelled by the caller`);

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
  [status.UNKNOWN]: "unknown",
};

/** The engine's own answer keeps its code and words; kubelet matches both. An engine that is away is named. */
export function engineError(error: ServiceError, socket: string): RuntimeError {
  if (error.code === status.UNAVAILABLE)
    return new RuntimeError(
      "unavailable",
      `The node's engine at ${socket} does not answer: ${error.details}`,
      { cause: error },
    );
  return new RuntimeError(codes[error.code] ?? "unknown", error.details, { cause: error });
}
