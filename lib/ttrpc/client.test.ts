import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Events } from "../gen/shim_events_service_pb.js";
import { StateRequestSchema, Task } from "../gen/shim_task_v3_pb.js";
import { type Request, RequestSchema, ResponseSchema } from "../gen/ttrpc_pb.js";
import { RuntimeError } from "../std/errors.ts";
import { createTtrpcClient, TtrpcConnection } from "./client.ts";
import { encodeFrame, type Frame, frameDecoder, MessageFlag, MessageType } from "./frame.ts";
import { serveTtrpc } from "./server.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-ttrpc-"));
});
afterEach(() => rmSync(dir, { recursive: true }));
const signal = () => AbortSignal.timeout(25_000);

/** A peer that hands each frame to `on` and writes what it is told. */
async function peer(path: string, on: (frame: Frame, send: (frame: Frame) => void, end: () => void) => void) {
  const server = createServer((socket) => {
    const decode = frameDecoder();
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      for (const frame of decode(chunk))
        on(
          frame as Frame,
          (out) => socket.write(encodeFrame(out)),
          () => socket.destroy(),
        );
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return { [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())) };
}

const response = (streamId: number, payload: Uint8Array): Frame => ({
  streamId,
  type: MessageType.response,
  flags: 0,
  data: toBinary(ResponseSchema, create(ResponseSchema, { payload })),
});

test("calls carry odd increasing ids, and replies out of order reach their callers", async () => {
  const path = join(dir, "s");
  const seen: Frame[] = [];
  await using _peer = await peer(path, (frame, send) => {
    seen.push(frame);
    // The payload of a StateRequest {id} reads as a StateResponse {id}.
    if (seen.length === 3)
      for (const each of seen.toReversed())
        send(response(each.streamId, fromBinary(RequestSchema, each.data).payload));
  });
  using connection = await TtrpcConnection.connect(`unix://${path}`, signal());
  const task = createTtrpcClient(Task, connection);
  const answers = await Promise.all(["a", "b", "c"].map((id) => task.state({ id })));
  expect(answers.map((answer) => answer.id)).toEqual(["a", "b", "c"]);
  expect(seen.map((frame) => frame.streamId)).toEqual([1, 3, 5]);
});

test("a request names service and method, and carries deadline and metadata", async () => {
  const path = join(dir, "s");
  const requests: Request[] = [];
  await using _peer = await peer(path, (frame, send) => {
    requests.push(fromBinary(RequestSchema, frame.data));
    send(response(frame.streamId, new Uint8Array()));
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const task = createTtrpcClient(Task, connection, {
    typeName: "containerd.task.v2.Task",
    metadata: { "containerd-namespace-ttrpc": "n" },
  });
  await task.closeIO({ id: "x", stdin: true }, { timeoutMs: 1500 });
  await task.wait({ id: "x" });
  expect(requests[0]).toMatchObject({
    service: "containerd.task.v2.Task",
    method: "CloseIO",
    timeoutNano: 1_500_000_000n,
    metadata: [{ key: "containerd-namespace-ttrpc", value: "n" }],
  });
  expect(requests[1]?.timeoutNano).toBe(0n);
});

test("a status other than OK is the RuntimeError of its code", async () => {
  const path = join(dir, "s");
  await using server = await serveTtrpc(path);
  server.add(Events, {
    forward: async () => {
      throw new RuntimeError("already-exists", "Twice");
    },
  });
  using connection = await TtrpcConnection.connect(path, signal());
  await expect(createTtrpcClient(Events, connection).forward({})).rejects.toMatchObject({
    code: "already-exists",
    message: "Forward: Twice",
  });
  await expect(createTtrpcClient(Task, connection).state({ id: "x" })).rejects.toMatchObject({
    code: "unimplemented",
  });
});

test("a method that a shim in Rust does not have is unimplemented, and nothing that is not there", async () => {
  const path = join(dir, "s");
  await using server = await serveTtrpc(path);
  const answers = [`/${Events.typeName}/Forward is not supported`, "container x"];
  server.add(Events, {
    forward: async () => {
      throw new RuntimeError("not-found", answers.shift() ?? "");
    },
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const { forward } = createTtrpcClient(Events, connection);
  await expect(forward({})).rejects.toMatchObject({ code: "unimplemented" });
  await expect(forward({})).rejects.toMatchObject({ code: "not-found" });
});

test("a closed connection rejects every waiting call, and later ones, as unavailable", async () => {
  const path = join(dir, "s");
  let calls = 0;
  await using _peer = await peer(path, (_frame, _send, end) => {
    if (++calls === 2) end();
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const task = createTtrpcClient(Task, connection);
  const outcomes = await Promise.allSettled([task.wait({ id: "a" }), task.wait({ id: "b" })]);
  expect(outcomes.map((outcome) => outcome.status === "rejected" && outcome.reason.code)).toEqual([
    "unavailable",
    "unavailable",
  ]);
  expect(await connection.closed).toMatchObject({ code: "unavailable" });
  await expect(task.state({ id: "a" })).rejects.toMatchObject({ code: "unavailable" });
});

test("a call ends at its deadline and by its signal, and a late answer disturbs nobody", async () => {
  const path = join(dir, "s");
  const late: (() => void)[] = [];
  await using _peer = await peer(path, (frame, send) => {
    const { method, payload } = fromBinary(RequestSchema, frame.data);
    if (method === "Wait") late.push(() => send(response(frame.streamId, new Uint8Array())));
    else send(response(frame.streamId, payload));
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const task = createTtrpcClient(Task, connection);
  await expect(task.wait({ id: "a" }, { timeoutMs: 20 })).rejects.toMatchObject({
    code: "deadline-exceeded",
  });
  const abort = new AbortController();
  const waiting = task.wait({ id: "a" }, { signal: abort.signal });
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: "cancelled" });
  await expect(task.wait({ id: "a" }, { signal: AbortSignal.abort() })).rejects.toMatchObject({
    code: "cancelled",
  });
  for (const answer of late) answer();
  expect(await task.state({ id: "b" })).toMatchObject({ id: "b" });
});

test("a message over 4 MiB is refused on either side and the connection lives on", async () => {
  const path = join(dir, "s");
  await using _peer = await peer(path, (frame, send) => {
    const { method } = fromBinary(RequestSchema, frame.data);
    send(
      response(
        frame.streamId,
        method === "Pids"
          ? new Uint8Array((4 << 20) + 1)
          : toBinary(StateRequestSchema, create(StateRequestSchema, { id: "ok" })),
      ),
    );
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const task = createTtrpcClient(Task, connection);
  await expect(task.state({ id: "x".repeat((4 << 20) + 1) })).rejects.toMatchObject({
    code: "resource-exhausted",
  });
  await expect(task.pids({ id: "x" })).rejects.toMatchObject({ code: "resource-exhausted" });
  expect(await task.state({ id: "x" })).toMatchObject({ id: "ok" });
});

test("a stream sends data frames both ways and ends by a closed one", async () => {
  const path = join(dir, "s");
  const kinds: [number, number][] = [];
  await using _peer = await peer(path, (frame, send) => {
    kinds.push([frame.type, frame.flags]);
    if (frame.type === MessageType.data && !(frame.flags & MessageFlag.noData)) send(frame);
    if (frame.flags & MessageFlag.remoteClosed)
      send({ ...frame, flags: MessageFlag.remoteClosed | MessageFlag.noData, data: new Uint8Array() });
  });
  using connection = await TtrpcConnection.connect(path, signal());
  const stream = connection.stream("s", "Echo", undefined);
  stream.send(new Uint8Array([1]));
  stream.send(new Uint8Array([2]));
  stream.closeSend();
  const got = [];
  for await (const message of stream.messages) got.push([...message]);
  expect(got).toEqual([[1], [2]]);
  expect(kinds).toEqual([
    [MessageType.request, MessageFlag.remoteOpen],
    [MessageType.data, 0],
    [MessageType.data, 0],
    [MessageType.data, MessageFlag.remoteClosed | MessageFlag.noData],
  ]);
});

test("a socket path longer than sun_path works for server and client", async () => {
  const long = join(dir, "d".repeat(120));
  mkdirSync(long);
  const path = join(long, "events.sock");
  await using server = await serveTtrpc(path);
  let topic: string | undefined;
  server.add(Events, {
    forward: async ({ envelope }) => {
      topic = envelope?.topic;
      return {};
    },
  });
  using connection = await TtrpcConnection.connect(path, signal());
  await createTtrpcClient(Events, connection).forward({ envelope: { topic: "/tasks/oom" } });
  expect(topic).toBe("/tasks/oom");
});

test("bytes that are no frame end the connection: no call waits for ever", async () => {
  const path = join(dir, "s");
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.write(Buffer.alloc(4096, 0xab));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  using connection = await TtrpcConnection.connect(path, signal());
  await expect(createTtrpcClient(Task, connection).wait({ id: "x" })).rejects.toMatchObject({
    code: "unavailable",
    message: expect.stringContaining("frame of type 171"),
  });
  expect(connection.open).toBe(false);
  server.close();
});

test("nobody listening is unavailable", async () => {
  await expect(TtrpcConnection.connect(join(dir, "none"), signal())).rejects.toMatchObject({
    code: "unavailable",
  });
});

test("to a peer that reads nothing no more is sent than a bound", async () => {
  const path = join(dir, "s");
  const server = createServer((socket) => void socket.on("error", () => {}).pause());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  using connection = await TtrpcConnection.connect(path, signal());
  const task = createTtrpcClient(Task, connection);
  const id = "x".repeat(1 << 20);
  const refused = await Promise.allSettled(
    Array.from({ length: 20 }, () => task.state({ id }, { timeoutMs: 200 })),
  );
  const unread = refused.filter(({ status, ...rest }) =>
    String((rest as { reason?: unknown }).reason).includes("has not read"),
  );
  expect(unread.length).toBeGreaterThan(8);
  expect(unread.length).toBeLessThan(20);
  connection.close();
  server.close();
});
