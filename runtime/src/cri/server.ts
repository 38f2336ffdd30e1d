import { chmod, mkdir, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { type DescMethod, type DescService, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import type { CriServices } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { annotate } from "@bulkhead/lib/tracing/span.ts";
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  status,
} from "@grpc/grpc-js";
import { listSerializer } from "./list-serializer.ts";
import { isFailure, statusName, toStatus } from "./status.ts";
import { traced } from "./trace.ts";

/** Above kubelet's 16 MiB, which ExecSync may fill. */
const maxMessage = 64 * 1024 * 1024;

/** Told about every call when it is over. */
export type Observer = (call: {
  method: string;
  request: Message;
  response: Message | undefined;
  code: status;
  error: unknown;
  ms: number;
}) => void;

/** The CRI services on a Unix socket, for root alone. Resolves when it serves. */
export const serveCri = async (
  socket: string,
  services: CriServices,
  observe: Observer,
): Promise<{ close(signal: AbortSignal): Promise<void> }> => {
  const server = new Server({
    "grpc.max_receive_message_length": maxMessage,
    "grpc.max_send_message_length": maxMessage,
    // Nobody asks for its statistics, which are kept at each message.
    "grpc.enable_channelz": 0,
  });
  const register = (service: DescService, methods: Record<string, Call>): void => {
    const { definition, implementation } = bind(service, methods, observe);
    server.addService(definition, implementation);
  };
  register(RuntimeService, services.runtime as unknown as Record<string, Call>);
  register(ImageService, services.image as unknown as Record<string, Call>);
  // The state may be beside it, and the root of a pod's user namespace must get through to its own files there.
  await mkdir(dirname(socket), { recursive: true, mode: 0o711 });
  await rm(socket, { force: true });
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`unix://${socket}`, ServerCredentials.createInsecure(), (error) =>
      error
        ? reject(new RuntimeError("unavailable", `Cannot listen on ${socket}: ${error.message}`))
        : resolve(),
    ),
  );
  await chmod(socket, 0o660);
  return {
    close: async (signal) => {
      const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      const force = (): void => server.forceShutdown();
      if (signal.aborted) force();
      signal.addEventListener("abort", force);
      await closed;
      signal.removeEventListener("abort", force);
    },
  };
};

type Call = (request: Message, signal: AbortSignal) => Promise<Message> | AsyncIterable<Message>;

const bind = (service: DescService, methods: Record<string, Call>, observe: Observer) => {
  const definition: Record<string, unknown> = {};
  const implementation: Record<
    string,
    handleUnaryCall<Message, Message> | handleServerStreamingCall<Message, Message>
  > = {};
  for (const method of service.methods) {
    const call = methods[method.localName];
    if (call === undefined) throw new RuntimeError("internal", `Nothing implements ${method.name}`);
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: false,
      responseStream: method.methodKind === "server_streaming",
      requestSerialize: (message: Message) => Buffer.from(toBinary(method.input, message)),
      requestDeserialize: (bytes: Buffer) => fromBinary(method.input, bytes),
      responseSerialize: serializer(method),
      responseDeserialize: (bytes: Buffer) => fromBinary(method.output, bytes),
    };
    implementation[method.name] =
      method.methodKind === "server_streaming"
        ? streaming(service, method, call, observe)
        : unary(service, method, call, observe);
  }
  return { definition: definition as ServiceDefinition, implementation };
};

/** Lists that are asked for every second, of messages that stay the same while nothing happens. */
const listed = /^List(Containers|PodSandbox)$/;

const serializer = (method: DescMethod): ((message: Message) => Buffer) =>
  listed.test(method.name)
    ? listSerializer(method.output)
    : (message) => Buffer.from(toBinary(method.output, message));

/** One for all: to make one takes a tenth of a list's time. */
const left = new DOMException("The caller has left", "AbortError");

/** The parts of a call that both kinds share: its end, which is told and stands in its span. */
const lifeOf = (service: DescService, method: DescMethod, observe: Observer, call: Calling) => {
  const from = performance.now();
  const controller = new AbortController();
  let answered = false;
  // grpc-js says "cancelled" of every call when it is over, too.
  call.on("cancelled", () => answered || controller.abort(left));
  const [traceparent] = call.metadata.get("traceparent");
  return {
    called: {
      service: service.typeName,
      method: method.name,
      request: call.request,
      traceparent: traceparent?.toString(),
    },
    signal: controller.signal,
    finish: (code: status, response: Message | undefined, error: unknown): void => {
      answered = true;
      const name = statusName(code);
      annotate({ "rpc.status_code": name, ...(isFailure(code) && { "error.type": name }) });
      const ms = performance.now() - from;
      observe({ method: method.name, request: call.request, response, code, error, ms });
    },
  };
};

/** What calls of both kinds have. */
type Calling = {
  request: Message;
  metadata: Metadata;
  on(event: "cancelled", listener: () => void): unknown;
};

const unary =
  (
    service: DescService,
    method: DescMethod,
    run: Call,
    observe: Observer,
  ): handleUnaryCall<Message, Message> =>
  (call, answer) => {
    const { called, signal, finish } = lifeOf(service, method, observe, call);
    void traced(called, async () => {
      let response: Message;
      try {
        response = (await run(call.request, signal)) as Message;
      } catch (error) {
        const failure = toStatus(error);
        answer(failure);
        finish(failure.code, undefined, error);
        return;
      }
      answer(null, response);
      finish(status.OK, response, undefined);
    });
  };

const streaming =
  (
    service: DescService,
    method: DescMethod,
    run: Call,
    observe: Observer,
  ): handleServerStreamingCall<Message, Message> =>
  (call) => {
    const { called, signal, finish } = lifeOf(service, method, observe, call);
    void traced(called, async () => {
      try {
        for await (const message of run(call.request, signal) as AsyncIterable<Message>) {
          if (signal.aborted) break;
          if (!call.write(message)) await drained(call, signal);
        }
      } catch (error) {
        const failure = toStatus(error);
        call.emit("error", failure);
        finish(failure.code, undefined, error);
        return;
      }
      call.end();
      finish(status.OK, undefined, undefined);
    });
  };

const drained = (call: NodeJS.EventEmitter, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      call.off("drain", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    call.on("drain", done);
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
