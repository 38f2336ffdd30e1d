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

/** What a server takes: data of one frame in bytes, connections at a time, and bytes of all of them in a millisecond. */
type Bounds = { maxFrame?: number; maxConnections?: number; bytesPerMs?: number };

/**
 * Serves unary methods of ttrpc on a Unix socket (0600), replacing what is left there of an earlier life. From a client
 * that does not read its answers no more is taken until it does.
 */
export async function serveTtrpc(
  path: string,
  { maxFrame = maxData, maxConnections, bytesPerMs = Number.POSITIVE_INFINITY }: Bounds = {},
): Promise<TtrpcServer> {
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
    if (socket.destroyed) return;
    if (!socket.write(encodeFrame({ streamId, type: MessageType.response, flags: 0, data }))) socket.pause();
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

  /** Until when what was taken lasts. */
  let busy = 0;
  const server = createServer((socket) => {
    let rest: NodeJS.Timeout | undefined;
    const resume = () => {
      if (!socket.writableNeedDrain && rest === undefined) socket.resume();
    };
    sockets.add(socket);
    socket.on("close", () => {
      clearTimeout(rest);
      sockets.delete(socket);
    });
    socket.on("error", () => socket.destroy());
    socket.on("drain", resume);
    const decode = frameDecoder(maxFrame);
    socket.on("data", (chunk: Buffer) => {
      for (const frame of decode(chunk)) {
        if (frame.type !== MessageType.request) continue;
        void answer(socket, frame.streamId, async () => {
          if ("oversized" in frame)
            throw new RuntimeError(
              "resource-exhausted",
              `The request has ${frame.oversized} bytes, more than ${maxFrame}`,
            );
          return await handle(frame.data, frame.flags);
        });
      }
      const now = performance.now();
      busy = Math.max(busy, now) + chunk.length / bytesPerMs;
      if (busy - now < 1 || rest !== undefined) return;
      socket.pause();
      rest = setTimeout(() => {
        rest = undefined;
        resume();
      }, busy - now).unref();
    });
  });
  if (maxConnections !== undefined) server.maxConnections = maxConnections;
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
