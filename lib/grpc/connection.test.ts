import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Http2Server, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { GrpcConnection } from "./connection.ts";

/* A real HTTP/2 server on a socket, which misbehaves. An error that nobody listens to ends the test's process. */

let dir: string;
let server: Http2Server;
let sockets: Socket[];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-grpc-"));
  sockets = [];
});
afterEach(() => {
  for (const socket of sockets) socket.destroy();
  server.close();
  rmSync(dir, { recursive: true });
});

type Misdeed = (stream: ServerHttp2Stream, session: ServerHttp2Session, socket: Socket) => void;

const connectTo = async (misdeed: Misdeed): Promise<GrpcConnection> => {
  server = createServer();
  server.on("connection", (socket: Socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
  });
  server.on("session", (session) => session.on("error", () => {}));
  server.on("stream", (stream: ServerHttp2Stream) => {
    stream.on("error", () => {});
    misdeed(stream, stream.session as ServerHttp2Session, sockets.at(-1) as Socket);
  });
  const path = join(dir, "shim.sock");
  server.listen(path);
  await once(server, "listening");
  return await GrpcConnection.connect(path, AbortSignal.timeout(30_000));
};

/** No frame of HTTP/2: of a length that nobody may send. */
const garbage = Buffer.alloc(4096, 0xff);
const INTERNAL_ERROR = 2;

const misdeeds: [string, Misdeed][] = [
  ["resets the stream", (stream) => stream.close(INTERNAL_ERROR)],
  ["says GOAWAY", (_, session) => session.goaway(0)],
  ["says GOAWAY with an error", (_, session) => session.goaway(INTERNAL_ERROR)],
  ["sends what is no frame", (_stream, _session, socket) => void socket.write(garbage)],
  ["hangs up", (_stream, _session, socket) => void socket.destroy()],
];

/** Fails in words now, and so does the next call. */
const failsTwice = async (connection: GrpcConnection): Promise<void> => {
  for (let call = 0; call < 2; call++)
    await expect(connection.unary("s", "m", new Uint8Array(3))).rejects.toMatchObject({
      name: "RuntimeError",
      code: "unavailable",
    });
  connection.close();
  expect((await connection.closed).code).toBe("unavailable");
};

test.each([
  ...misdeeds,
  ["answers what is no gRPC", (stream) => stream.respond({ ":status": 500 }, { endStream: true })],
] satisfies [string, Misdeed][])(
  "a call whose server %s fails in words, and ends nothing else",
  async (_, misdeed) => {
    await failsTwice(await connectTo(misdeed));
  },
);

test.each(misdeeds)("so does one whose server %s in the middle of its answer", async (_, misdeed) => {
  const connection = await connectTo((stream, ...rest) => {
    stream.respond({ ":status": 200, "content-type": "application/grpc" });
    stream.write(Buffer.alloc(2));
    setTimeout(() => misdeed(stream, ...rest), 20);
  });
  await failsTwice(connection);
});

test.each(misdeeds)(
  "a server that has answered before it has read the request, and then %s, ends nothing",
  async (_, misdeed) => {
    const answered = Promise.withResolvers<void>();
    const done = Promise.withResolvers<void>();
    const connection = await connectTo((stream, session, socket) => {
      // Of a large request the rest waits for the server to read on: the stream stays open on our side.
      stream.pause();
      stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
      stream.once("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.end(Buffer.alloc(5));
      void answered.promise.then(() => misdeed(stream, session, socket)).then(done.resolve);
    });
    expect(await connection.unary("s", "m", new Uint8Array(1 << 20))).toEqual(Buffer.alloc(0));
    answered.resolve();
    await done.promise;
    await sleep(100);
    connection.close();
    expect((await connection.closed).code).toBe("unavailable");
  },
);
