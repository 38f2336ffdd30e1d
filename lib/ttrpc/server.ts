import { rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import {
  create,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { RequestSchema, ResponseSchema } from "../gen/ttrpc_pb.js";
import { RuntimeError } from "../std/errors.ts";
import { encodeFrame, frameDecoder, MessageFlag, MessageType, maxData } from "./frame.ts";
import { listenOn } from "./socket.ts";
import { statusOfError } from "./status.ts";

/** What serves a service's unary methods. */
export type Handlers<S extends DescService> = {
  [K in keyof S["method"]]: S["method"][K] extends DescMethodUnary<infer I, infer O>
    ? (request: MessageShape<I>, metadata: Record<string, string>) => Promise<MessageInitShape<O>>
    : never;
};

export type TtrpcServer = AsyncDisposable & {
  add<S extends DescService>(service: S, handlers: Handlers<S>): void;
};

type Method = (payload: Uint8Array, metadata: Record<string, string>) => Promise<Uint8Array>;

/** Serves unary methods of ttrpc on a Unix socket (0600), replacing what is left there of an earlier life. */
export async function serveTtrpc(path: string): Promise<TtrpcServer> {
  const methods = new Map<string, Method>();
  const sockets = new Set<Socket>();

  const answer = async (socket: Socket, streamId: number, work: () => Promise<Uint8Array>) => {
    let response: MessageInitShape<typeof ResponseSchema>;
    try {
      response = { payload: await work() };
    } catch (error) {
      response = { status: statusOfError(error) };
    }
    const data = toBinary(ResponseSchema, create(ResponseSchema, response));
    if (!socket.destroyed)
      socket.write(encodeFrame({ streamId, type: MessageType.response, flags: 0, data }));
  };

  const handle = async (data: Uint8Array, flags: number): Promise<Uint8Array> => {
    const request = fromBinary(RequestSchema, data);
    const method = methods.get(`${request.service}/${request.method}`);
    if (!method || flags & MessageFlag.remoteOpen)
      throw new RuntimeError("unimplemented", `No unary method ${request.service}/${request.method}`);
    return await method(
      request.payload,
      Object.fromEntries(request.metadata.map(({ key, value }) => [key, value])),
    );
  };

  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    const decode = frameDecoder();
    socket.on("data", (chunk: Buffer) => {
      for (const frame of decode(chunk)) {
        if (frame.type !== MessageType.request) continue;
        void answer(socket, frame.streamId, async () => {
          if ("oversized" in frame)
            throw new RuntimeError(
              "resource-exhausted",
              `The request has ${frame.oversized} bytes, more than ${maxData}`,
            );
          return await handle(frame.data, frame.flags);
        });
      }
    });
  });
  await listenOn(server, path);
  return {
    add: (service, handlers) => {
      for (const method of service.methods) {
        const run = (
          handlers as Record<
            string,
            (request: unknown, metadata: Record<string, string>) => Promise<Record<string, unknown>>
          >
        )[method.localName];
        if (!run) continue;
        methods.set(`${service.typeName}/${method.name}`, async (payload, metadata) =>
          toBinary(
            method.output,
            create(method.output, await run(fromBinary(method.input, payload), metadata)),
          ),
        );
      }
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      rmSync(path, { force: true });
    },
  };
}
