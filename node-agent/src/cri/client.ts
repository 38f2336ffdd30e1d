import type { DescService, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type ErrorCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as grpc from "@grpc/grpc-js";

/** The unary methods of a service, as functions of message and signal. */
export type Client<S extends DescService> = {
  [K in keyof S["method"] as S["method"][K]["methodKind"] extends "unary" ? K : never]: (
    request: MessageInitShape<S["method"][K]["input"]>,
    signal: AbortSignal,
  ) => Promise<MessageShape<S["method"][K]["output"]>>;
};

const codes: Partial<Record<grpc.status, ErrorCode>> = {
  [grpc.status.NOT_FOUND]: "not-found",
  [grpc.status.ALREADY_EXISTS]: "already-exists",
  [grpc.status.INVALID_ARGUMENT]: "invalid-argument",
  [grpc.status.FAILED_PRECONDITION]: "failed-precondition",
  [grpc.status.RESOURCE_EXHAUSTED]: "resource-exhausted",
  [grpc.status.UNAVAILABLE]: "unavailable",
  [grpc.status.DEADLINE_EXCEEDED]: "deadline-exceeded",
  [grpc.status.CANCELLED]: "cancelled",
  [grpc.status.PERMISSION_DENIED]: "permission-denied",
  [grpc.status.UNIMPLEMENTED]: "unimplemented",
};

/** The library's words for a socket that nobody serves are many; the cause in them is enough. */
const said = (details: string): string => /connect E[A-Z]+ \S+/.exec(details)?.[0] ?? details;

/** One connection to a CRI socket. */
export class CriConnection implements Disposable {
  readonly #channel: grpc.Client;

  constructor(socket: string) {
    this.#channel = new grpc.Client(`unix:${socket}`, grpc.credentials.createInsecure(), {
      // The channel must not hold on to a server that went away: a restart of the runtime is ordinary.
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1000,
      "grpc.use_local_subchannel_pool": 1,
      "grpc.max_receive_message_length": 64 << 20,
      "grpc.default_authority": "localhost",
    });
  }

  /** A typed client made from the service's descriptor. */
  service<S extends DescService>(service: S): Client<S> {
    const methods = service.methods
      .filter((method) => method.methodKind === "unary")
      .map((method) => {
        const path = `/${service.typeName}/${method.name}`;
        const call = (request: MessageInitShape<typeof method.input>, signal: AbortSignal) =>
          this.#unary(
            path,
            method.name,
            toBinary(method.input, create(method.input, request)),
            (bytes) => fromBinary(method.output, bytes),
            signal,
          );
        return [method.localName, call] as const;
      });
    return Object.fromEntries(methods) as unknown as Client<S>;
  }

  #unary<T>(
    path: string,
    name: string,
    request: Uint8Array,
    decode: (bytes: Uint8Array) => T,
    signal: AbortSignal,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const call = this.#channel.makeUnaryRequest(
        path,
        (bytes: Uint8Array) => Buffer.from(bytes),
        decode,
        request,
        new grpc.Metadata(),
        {},
        (error, response) => {
          signal.removeEventListener("abort", cancel);
          if (error === null) resolve(response as T);
          else if (signal.aborted)
            reject(new RuntimeError("deadline-exceeded", `${name} did not answer in time`));
          else
            reject(
              new RuntimeError(codes[error.code] ?? "unknown", `${name}: ${said(error.details)}`, {
                cause: error,
              }),
            );
        },
      );
      const cancel = (): void => call.cancel();
      signal.addEventListener("abort", cancel, { once: true });
    });
  }

  [Symbol.dispose](): void {
    this.#channel.close();
  }
}
