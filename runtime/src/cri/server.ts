import { chmod, mkdir, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { type DescMethod, type DescService, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import type { CriServices } from "@bulkhead/lib/cri/client.ts";
import { ImageService, RuntimeService } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  status,
} from "@grpc/grpc-js";
import { listSerializer } from "./list-serializer.ts";
import { toStatus } from "./status.ts";

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
        ? streaming(method, call, observe)
        : unary(method, call, observe);
  }
  return { definition: definition as ServiceDefinition, implementation };
};

/** Lists that are asked for every second, of messages that stay the same while nothing happens. */
const listed = /^List(Containers|PodSandbox)$/;

const serializer = (method: DescMethod): ((message: Message) => Buffer) =>
  listed.test(method.name)
    ? listSerializer(method.output)
    : (message) => Buffer.from(toBinary(method.output, message));

const unary =
  (method: DescMethod, run: Call, observe: Observer): handleUnaryCall<Message, Message> =>
  (call, answer) => {
    const from = performance.now();
    const controller = new AbortController();
    call.on("cancelled", () => controller.abort());
    const finish = (code: status, response: Message | undefined, error: unknown): void =>
      observe({
        method: method.name,
        request: call.request,
        response,
        code,
        error,
        ms: performance.now() - from,
      });
    // An async function, so that what is thrown at once is answered like what is thrown later.
    (async () => (await run(call.request, controller.signal)) as Message)().then(
      (response) => {
        answer(null, response);
        finish(status.OK, response, undefined);
      },
      (error: unknown) => {
        const failure = toStatus(error);
        answer(failure);
        finish(failure.code, undefined, error);
      },
    );
  };

const streaming =
  (method: DescMethod, run: Call, observe: Observer): handleServerStreamingCall<Message, Message> =>
  (call) => {
    const from = performance.now();
    const controller = new AbortController();
    call.on("cancelled", () => controller.abort());
    const finish = (code: status, error: unknown): void =>
      observe({
        method: method.name,
        request: call.request,
        response: undefined,
        code,
        error,
        ms: performance.now() - from,
      });
    (async () => {
      for await (const message of run(call.request, controller.signal) as AsyncIterable<Message>) {
        if (controller.signal.aborted) break;
        if (!call.write(message)) await drained(call, controller.signal);
      }
    })().then(
      () => {
        call.end();
        finish(status.OK, undefined);
      },
      (error: unknown) => {
        const failure = toStatus(error);
        call.emit("error", failure);
        finish(failure.code, error);
      },
    );
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
