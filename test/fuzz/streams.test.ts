import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { Events } from "@bulkhead/lib/gen/shim_events_service_pb.js";
import { RequestSchema } from "@bulkhead/lib/gen/ttrpc_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { TtrpcConnection } from "@bulkhead/lib/ttrpc/client.ts";
import { encodeFrame, frameDecoder, MessageType } from "@bulkhead/lib/ttrpc/frame.ts";
import { serveTtrpc } from "@bulkhead/lib/ttrpc/server.ts";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { windowSizes } from "../../runtime/src/streaming/resize.ts";
import { createStreamingServer } from "../../runtime/src/streaming/server.ts";
import type { StreamingBackend, StreamingServer } from "../../runtime/src/streaming/streaming.ts";
import { mutated } from "./mutate.ts";
import * as samples from "./samples.ts";

/* What comes in pieces over a socket: whatever it is, the other end lives on and serves the next in order. */

/** Real bytes with some changed, cut anywhere. */
const broken = (whole: Buffer) =>
  fc
    .record({
      changes: fc.array(fc.record({ at: fc.nat(), byte: fc.nat(255) }), { maxLength: 6 }),
      cuts: fc.array(fc.nat(whole.length), { maxLength: 5 }),
      tail: fc.uint8Array({ maxLength: 30 }),
    })
    .map(({ changes, cuts, tail }) => {
      const bytes = Buffer.concat([whole, tail]);
      for (const { at, byte } of changes) bytes[at % bytes.length] = byte;
      const places = [...new Set(cuts)].sort((a, b) => a - b);
      return [0, ...places].map((from, n) => bytes.subarray(from, places[n]));
    });

/** Sends the pieces and hangs up; resolves when the connection is gone. */
const pour = async (socket: Socket, pieces: readonly Buffer[]): Promise<void> => {
  socket.on("error", () => {});
  socket.resume();
  for (const piece of pieces) socket.write(piece);
  socket.end();
  if (!socket.destroyed) await Promise.race([once(socket, "close"), sleep(2000, undefined, { ref: false })]);
  socket.destroy();
};

describe("ttrpc", () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "bh-fuzz-"));
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  const call = encodeFrame({
    streamId: 1,
    type: MessageType.request,
    flags: 0,
    data: toBinary(
      RequestSchema,
      create(RequestSchema, {
        service: Events.typeName,
        method: "Forward",
        metadata: [{ key: "a", value: "b" }],
      }),
    ),
  });

  test("a server takes any bytes and answers the next client", async () => {
    const path = join(dir, "server.sock");
    await using server = await serveTtrpc(path);
    server.add(Events, { forward: async () => ({}) });
    await fc.assert(
      fc.asyncProperty(broken(Buffer.from(call)), async (pieces) => {
        await pour(connect(path), pieces);
      }),
      { numRuns: 150 },
    );
    using client = await TtrpcConnection.connect(path, AbortSignal.timeout(25_000));
    await client.unary(Events.typeName, "Forward", new Uint8Array(), { timeoutMs: 5000 });
  });

  test("a client of a server that answers anything gets an error or an answer, never waits past its deadline", async () => {
    const path = join(dir, "client.sock");
    let answer: readonly Buffer[] = [];
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => {
        for (const piece of answer) socket.write(piece);
        if (answer.length % 2 === 0) socket.end();
      });
    }).listen(path);
    await once(server, "listening");
    const whole = Buffer.from(
      encodeFrame({ streamId: 1, type: MessageType.response, flags: 0, data: new Uint8Array() }),
    );
    try {
      await fc.assert(
        fc.asyncProperty(broken(whole), async (pieces) => {
          answer = pieces;
          using client = await TtrpcConnection.connect(path, AbortSignal.timeout(25_000));
          const begun = performance.now();
          await client
            .unary(Events.typeName, "Forward", new Uint8Array(), { timeoutMs: 30 })
            .catch((error) => expect(error).toBeInstanceOf(RuntimeError));
          expect(performance.now() - begun).toBeLessThan(20_000);
        }),
        { numRuns: 100 },
      );
    } finally {
      server.close();
    }
  }, 30_000);

  test("a large frame in many small pieces takes no more time than its bytes", () => {
    const decode = frameDecoder();
    const bytes = encodeFrame({ streamId: 1, type: 1, flags: 0, data: new Uint8Array(4 << 20) });
    const before = process.cpuUsage();
    let frames = 0;
    for (let at = 0; at < bytes.length; at += 16) frames += decode(bytes.subarray(at, at + 16)).length;
    expect(frames).toBe(1);
    expect(process.cpuUsage(before).user / 1e6).toBeLessThan(3);
  });
});

describe("the streaming server", () => {
  /** Stands in for containers: what comes in goes out. */
  const backend: StreamingBackend = {
    async exec(_id, _cmd, { stdin, stdout }) {
      if (stdin && stdout) stdin.pipe(stdout, { end: false });
      return { exited: sleep(20).then(() => 0), resize: async () => {}, kill: async () => {} };
    },
    async attach() {
      return { stdout: new PassThrough().end("x"), resize: async () => {}, close: () => {} };
    },
    async portForward() {
      return new PassThrough();
    },
  };
  let server: StreamingServer;
  beforeAll(async () => {
    server = await createStreamingServer({ host: "127.0.0.1", port: 0 }, backend);
  });
  afterAll(() => server.close());
  const all = { containerId: "c", cmd: ["cat"], tty: false, stdin: true, stdout: true, stderr: true };

  const serves = async (): Promise<void> => {
    const socket = new WebSocket(server.execUrl(all).replace("http", "ws"), ["v5.channel.k8s.io"]);
    await once(socket, "open");
    await once(socket, "close");
  };

  test("takes any request for an upgrade", async () => {
    const request = (url: string): string =>
      `GET ${new URL(url).pathname} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n` +
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n\r\n";
    const { port } = new URL(server.execUrl(all));
    await fc.assert(
      fc.asyncProperty(fc.constantFrom("exec", "attach", "portforward"), fc.nat(), async (kind, pick) => {
        const url =
          kind === "exec"
            ? server.execUrl(all)
            : kind === "attach"
              ? server.attachUrl(all)
              : server.portForwardUrl({ podId: "p", ports: [80] });
        const spdy = request(url)
          .replace("websocket", "SPDY/3.1")
          .replaceAll("Sec-WebSocket-Protocol", "X-Stream-Protocol-Version");
        const [text] = fc.sample(mutated([request(url), spdy]), { numRuns: 1, seed: pick });
        await pour(connect(Number(port), "127.0.0.1"), [Buffer.from(text ?? "", "latin1")]);
      }),
      { numRuns: 120 },
    );
    await serves();
  }, 60_000);

  test.each(["v5.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"])(
    "takes any messages of a WebSocket client (%s)",
    async (protocol) => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.string({ maxLength: 40 })), {
            maxLength: 8,
          }),
          fc.boolean(),
          async (messages, tty) => {
            const socket = new WebSocket(server.execUrl({ ...all, tty }).replace("http", "ws"), [protocol]);
            await once(socket, "open");
            for (const message of messages) socket.send(message);
            await Promise.race([once(socket, "close"), sleep(3000, undefined, { ref: false })]);
            expect(socket.readyState).toBe(WebSocket.CLOSED);
          },
        ),
        { numRuns: 25 },
      );
      await serves();
    },
    60_000,
  );

  test("cuts off a message of more than 1 MiB and serves the next", async () => {
    const url = server.portForwardUrl({ podId: "p", ports: [80] });
    const socket = new WebSocket(url.replace("http", "ws"), ["v4.channel.k8s.io"]);
    await once(socket, "open");
    socket.send(Buffer.alloc(1024 * 1024 + 1));
    const [{ code }] = await once(socket, "close");
    expect([1006, 1009]).toContain(code);
    await serves();
  });
});

test("window sizes, whatever they are, are read to their end", async () => {
  await fc.assert(
    fc.asyncProperty(mutated(samples.windowSizes), async (text) => {
      const stream = new PassThrough();
      stream.end(text);
      for await (const { width, height } of windowSizes(stream))
        expect(Math.max(width, height)).toBeLessThan(65_536);
    }),
  );
});
