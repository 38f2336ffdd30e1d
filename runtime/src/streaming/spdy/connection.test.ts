import { once } from "node:events";
import { type Duplex, duplexPair } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Unread } from "../unread.ts";
import { SpdyConnection, type SpdyStream } from "./connection.ts";
import { dataHeader, decodeFrame, type Frame, frameSize, ping, rst, rstStream, synStream } from "./frame.ts";
import { HeaderDeflater } from "./headers.ts";

const mebi = 1024 * 1024;

/** The server's end of a connection, and the client's as bytes out and frames in. */
const connect = (all = new Unread()) => {
  const [server, client] = duplexPair() as [Duplex, Duplex];
  const streams: SpdyStream[] = [];
  const connection = new SpdyConnection(server, all.client(), (stream) => void streams.push(stream));
  const frames: Frame[] = [];
  let rest = Buffer.alloc(0);
  client.on("data", (chunk: Buffer) => {
    rest = Buffer.concat([rest, chunk]);
    for (let size = frameSize(rest); size !== undefined && rest.length >= size; size = frameSize(rest)) {
      frames.push(decodeFrame(rest.subarray(0, size)));
      rest = rest.subarray(size);
    }
  });
  client.on("error", () => {}).setMaxListeners(0);
  const deflater = new HeaderDeflater();
  const open = (id: number) => synStream(id, deflater.encode(new Map([["streamtype", "data"]])));
  return { client, connection, streams, frames, open };
};

const isClosed = (connection: SpdyConnection): Promise<unknown> =>
  connection.closed.aborted ? Promise.resolve() : once(connection.closed, "abort");

test("a frame of 1 MiB is taken, of one more byte the connection ends before its data is there", async () => {
  const { client, connection, streams, open } = connect();
  client.write(open(1));
  await expect.poll(() => streams.length).toBe(1);
  let received = 0;
  streams[0]!.on("data", (chunk: Buffer) => {
    received += chunk.length;
  });
  const largest = mebi - 8;
  client.write(dataHeader(1, largest, false));
  client.write(Buffer.alloc(largest));
  await expect.poll(() => received).toBe(largest);
  expect(connection.closed.aborted).toBe(false);
  client.write(dataHeader(1, largest + 1, false));
  await isClosed(connection);
});

test("a large frame in many small pieces takes no more time than its bytes", async () => {
  const { client, connection, streams, open } = connect();
  client.write(open(1));
  await expect.poll(() => streams.length).toBe(1);
  let received = 0;
  streams[0]!.on("data", (chunk: Buffer) => {
    received += chunk.length;
  });
  const bytes = Buffer.concat([dataHeader(1, mebi - 8, false), Buffer.alloc(mebi - 8)]);
  const begun = performance.now();
  for (let at = 0; at < bytes.length; at += 16)
    if (!client.write(bytes.subarray(at, at + 16))) await once(client, "drain");
  await expect.poll(() => received).toBe(mebi - 8);
  expect(performance.now() - begun).toBeLessThan(20_000);
  connection.close();
});

test("1024 streams are open at once; one more is refused, and the others go on", async () => {
  const { client, connection, streams, frames, open } = connect();
  for (let n = 0; n < 1024; n++) client.write(open(2 * n + 1));
  // A thousand streams take their time on a busy machine.
  await expect.poll(() => streams.length, { timeout: 25_000 }).toBe(1024);
  client.write(open(2049));
  await expect
    .poll(() => frames.find(({ type }) => type === "rstStream"))
    .toEqual({ type: "rstStream", stream: 2049, status: rst.refusedStream });
  expect(streams).toHaveLength(1024);
  // When one has gone there is room for another.
  client.write(rstStream(1, rst.cancel));
  client.write(open(2051));
  await expect.poll(() => streams.at(-1)?.id).toBe(2051);
  client.write(Buffer.concat([dataHeader(3, 2, false), Buffer.from("on")]));
  expect(String(await once(streams[1]!, "data"))).toBe("on");
  connection.close();
});

test("a slow reader of one stream holds the client back after 1 MiB", async () => {
  const { client, connection, streams, open } = connect();
  client.write(open(1));
  await expect.poll(() => streams.length).toBe(1);
  const piece = Buffer.concat([dataHeader(1, 32 * 1024, false), Buffer.alloc(32 * 1024)]);
  let sent = 0;
  const pour = (async () => {
    while (sent < 64 * mebi && !connection.closed.aborted) {
      sent += piece.length;
      if (!client.write(piece)) await Promise.race([once(client, "drain"), isClosed(connection)]);
    }
  })();
  await sleep(300);
  expect(sent).toBeLessThan(2 * mebi);
  expect(streams[0]!.readableLength).toBeLessThan(1.2 * mebi);
  connection.close();
  await pour;
});

/** Sends to one stream after the other until nothing is taken any more. */
const pourInto = async ({ client, connection, open }: ReturnType<typeof connect>, count: number) => {
  for (let n = 0; n < count; n++) client.write(open(2 * n + 1));
  const pour = (async () => {
    for (let n = 0; n < count && !connection.closed.aborted; n++)
      for (let sent = 0; sent < mebi - 64 * 1024; sent += 32 * 1024) {
        const piece = Buffer.concat([dataHeader(2 * n + 1, 32 * 1024, false), Buffer.alloc(32 * 1024)]);
        if (!client.write(piece)) await Promise.race([once(client, "drain"), isClosed(connection)]);
      }
  })();
  let before = -1;
  for (let now = 0; now !== before; [before, now] = [now, connection.unread]) await sleep(200);
  return { pour };
};

test("streams that nobody reads hold 4 MiB together, and when one is read the client goes on", async () => {
  const one = connect();
  const { pour } = await pourInto(one, 40);
  expect(one.connection.unread).toBeLessThan(4.1 * mebi);
  expect(one.connection.unread).toBeGreaterThan(3.9 * mebi);
  for (const stream of one.streams) stream.resume();
  one.streams.push = (...more) => {
    for (const stream of more) stream.resume();
    return 0;
  };
  await pour;
  await expect.poll(() => one.connection.unread).toBe(0);
  one.connection.close();
});

test("clients hold so much together, each 64 KiB at least, and give back what they held when they go", async () => {
  const all = new Unread(5 * mebi);
  const [first, second, third] = [connect(all), connect(all), connect(all)];
  const pours = [await pourInto(first, 10), await pourInto(second, 10), await pourInto(third, 10)];
  const held = [first, second, third].map(({ connection }) => connection.unread / mebi);
  expect(held[0]! + held[1]! + held[2]!).toBeLessThan(5.3);
  expect(held[2]).toBeGreaterThan(0.05);
  first.connection.close();
  await expect.poll(() => third.connection.unread / mebi).toBeGreaterThan(0.5);
  second.connection.close();
  third.connection.close();
  await Promise.all(pours.map(({ pour }) => pour));
  expect(all.held).toBe(0);
});

test("whatever a client sends, its connection ends or answers its ping", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ at: fc.nat(), byte: fc.nat(255) }), { maxLength: 6 }),
      fc.array(fc.nat(), { maxLength: 6 }),
      fc.uint8Array({ maxLength: 40 }),
      async (changes, cuts, tail) => {
        const { client, connection, streams, frames, open } = connect();
        const whole = Buffer.concat([
          open(1),
          dataHeader(1, 5, false),
          Buffer.from("hello"),
          open(3),
          ping(1),
          rstStream(3, 5),
          dataHeader(1, 0, true),
          tail,
        ]);
        for (const { at, byte } of changes) whole[at % whole.length] = byte;
        const places = [...new Set(cuts.map((cut) => cut % whole.length))].sort((a, b) => a - b);
        for (const [n, from] of [0, ...places].entries()) client.write(whole.subarray(from, places[n]));
        client.end();
        for (const stream of streams) stream.resume();
        await Promise.race([
          isClosed(connection),
          sleep(5000, undefined, { ref: false }).then(() => {
            throw new Error("the connection neither ended nor was it read to its end");
          }),
        ]);
        if (changes.length === 0) expect(frames).toContainEqual({ type: "ping", id: 1 });
      },
    ),
    { numRuns: 300 },
  );
});
