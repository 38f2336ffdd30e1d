import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import { afterAll, expect, test } from "vitest";
import { Events } from "../gen/shim_events_service_pb.js";
import { RequestSchema } from "../gen/ttrpc_pb.js";
import { createTtrpcClient, TtrpcConnection } from "./client.ts";
import { encodeFrame, MessageType } from "./frame.ts";
import { serveTtrpc } from "./server.ts";

const dir = mkdtempSync(join(tmpdir(), "bh-ttrpc-server-"));
afterAll(() => rmSync(dir, { recursive: true }));

const call = encodeFrame({
  streamId: 1,
  type: MessageType.request,
  flags: 0,
  data: toBinary(RequestSchema, create(RequestSchema, { service: Events.typeName, method: "Forward" })),
});

/** Sends `count` calls and reads no answer. */
const flood = (path: string, count: number) => {
  const socket = connect(path);
  socket.on("error", () => {});
  socket.pause();
  socket.write(Buffer.concat(Array.from({ length: count }, () => call)));
  return { [Symbol.dispose]: () => void socket.destroy() };
};

test.each([
  ["reads no answer", {}],
  ["sends more than its share", { bytesPerMs: 1 }],
])("a client that %s is taken no more from, and another one is served", async (_, bounds) => {
  const path = join(dir, `${Object.keys(bounds).length}.sock`);
  await using server = await serveTtrpc(path, bounds);
  let served = 0;
  server.add(Events, {
    forward: async () => {
      served++;
      return {};
    },
  });
  const count = 200_000;
  using _flood = flood(path, count);
  await expect.poll(() => served).toBeGreaterThan(0);
  // Until it comes to rest.
  for (let before = 0; before < served; await new Promise((resolve) => setTimeout(resolve, 300)))
    before = served;
  expect(served).toBeLessThan(count);
  using client = await TtrpcConnection.connect(path, AbortSignal.timeout(25_000));
  await createTtrpcClient(Events, client).forward({}, { timeoutMs: 20_000 });
});

test("a call over the server's bound fails alone", async () => {
  const path = join(dir, "bound.sock");
  await using server = await serveTtrpc(path, { maxFrame: 1 << 10 });
  server.add(Events, { forward: async () => ({}) });
  using client = await TtrpcConnection.connect(path, AbortSignal.timeout(25_000));
  const { forward } = createTtrpcClient(Events, client);
  const envelope = { topic: "x".repeat(2 << 10) };
  await expect(forward({ envelope }, { timeoutMs: 20_000 })).rejects.toMatchObject({
    code: "resource-exhausted",
  });
  await forward({}, { timeoutMs: 20_000 });
});
