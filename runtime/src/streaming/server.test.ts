import { connect, createServer, type Socket } from "node:net";
import { type Duplex, PassThrough } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { WebSocket } from "ws";
import type { ExecProcess } from "../handler/handler.ts";
import { createStreamingServer } from "./server.ts";
import { dataHeader, decodeFrame, type Frame, frameSize, synStream } from "./spdy/frame.ts";
import { HeaderDeflater } from "./spdy/headers.ts";
import type { StreamingBackend, StreamingServer } from "./streaming.ts";

/** Stands in for containers: `cat` copies stdin to stdout and ends with its first byte as exit code. */
const backend: StreamingBackend = {
  async exec(id, cmd, { stdin, stdout, stderr }): Promise<ExecProcess> {
    if (id !== "running") throw new RuntimeError("not-found", `Cannot find container "${id}"`);
    const sizes: string[] = [];
    const exited = (async () => {
      if (cmd[0] === "cat" && stdin) for await (const chunk of stdin) stdout?.write(chunk);
      if (cmd[0] === "size") {
        while (sizes.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
        stdout?.write(sizes.join());
      }
      stderr?.write("to stderr");
      return Number(cmd[1] ?? 0);
    })();
    return { exited, resize: async (w, h) => void sizes.push(`${w}x${h}`), kill: async () => {} };
  },
  async attach() {
    const stdout = new PassThrough();
    stdout.end("attached");
    return { stdout, resize: async () => {}, close: () => {} };
  },
  async portForward(_pod, port) {
    return await new Promise<Duplex>((resolve, reject) => {
      const socket: Socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true }, () => resolve(socket));
      socket.once("error", reject);
    });
  },
};

let server: StreamingServer;
beforeAll(async () => {
  server = await createStreamingServer({ host: "127.0.0.1", port: 0 }, backend);
});
afterAll(() => server.close());

/** A SPDY client of the length of this test: opens streams, sends, and collects what comes per stream. */
async function spdy(url: string, protocol: string) {
  const { port, pathname } = new URL(url);
  const socket = connect(Number(port), "127.0.0.1");
  socket.write(
    `POST ${pathname} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ${protocol}\r\n\r\n`,
  );
  const deflater = new HeaderDeflater();
  const received = new Map<number, string>();
  const ended = Promise.withResolvers<void>();
  let rest: Buffer = Buffer.alloc(0);
  const answer = Promise.withResolvers<string>();
  let upgraded = false;
  socket.on("data", (chunk: Buffer) => {
    rest = Buffer.concat([rest, chunk]);
    if (!upgraded) {
      const end = rest.indexOf("\r\n\r\n");
      if (end < 0) return;
      upgraded = true;
      answer.resolve(rest.toString("latin1", 0, end));
      rest = rest.subarray(end + 4);
    }
    for (let size = frameSize(rest); size !== undefined && rest.length >= size; size = frameSize(rest)) {
      const frame: Frame = decodeFrame(rest.subarray(0, size));
      rest = rest.subarray(size);
      if (frame.type === "data") received.set(frame.stream, (received.get(frame.stream) ?? "") + frame.data);
    }
  });
  socket.on("close", () => ended.resolve());
  const open = (id: number, headers: Record<string, string>) =>
    socket.write(synStream(id, deflater.encode(new Map(Object.entries(headers)))));
  return {
    answer: answer.promise,
    received,
    ended: ended.promise,
    openAll: (names: string[]) => {
      for (const [index, streamtype] of names.entries()) open(2 * index + 1, { streamtype });
    },
    open,
    send: (id: number, text: string, fin = false) =>
      socket.write(Buffer.concat([dataHeader(id, text.length, fin), Buffer.from(text)])),
    close: () => socket.destroy(),
  };
}

const all = { tty: false, stdin: true, stdout: true, stderr: true };

test("Exec over SPDY copies stdin to the process, its output back, and ends with the exit code", async () => {
  const client = await spdy(
    server.execUrl({ containerId: "running", cmd: ["cat", "3"], ...all }),
    "v4.channel.k8s.io",
  );
  expect(await client.answer).toContain("101 Switching Protocols");
  client.openAll(["error", "stdin", "stdout", "stderr"]);
  client.send(3, "hello ");
  client.send(3, "wall", true);
  await client.ended;
  expect(client.received.get(5)).toBe("hello wall");
  expect(client.received.get(7)).toBe("to stderr");
  expect(JSON.parse(client.received.get(1) ?? "")).toMatchObject({
    status: "Failure",
    reason: "NonZeroExitCode",
    details: { causes: [{ reason: "ExitCode", message: "3" }] },
  });
});

test("A window size reaches the process", async () => {
  const request = {
    containerId: "running",
    cmd: ["size"],
    tty: true,
    stdin: false,
    stdout: true,
    stderr: false,
  };
  const client = await spdy(server.execUrl(request), "v4.channel.k8s.io");
  await client.answer;
  client.openAll(["error", "stdout", "resize"]);
  client.send(5, '{"Width":120,"He');
  client.send(5, 'ight":40}\n');
  await client.ended;
  expect(client.received.get(3)).toBe("120x40");
  expect(JSON.parse(client.received.get(1) ?? "")).toMatchObject({ status: "Success" });
});

test("An exec that cannot start ends with the reason", async () => {
  const client = await spdy(
    server.execUrl({ containerId: "gone", cmd: ["cat"], ...all }),
    "v4.channel.k8s.io",
  );
  await client.answer;
  client.openAll(["error", "stdin", "stdout", "stderr"]);
  await client.ended;
  expect(JSON.parse(client.received.get(1) ?? "")).toMatchObject({
    reason: "NotFound",
    message: 'Cannot find container "gone"',
  });
});

test("A URL serves one client only", async () => {
  const url = server.attachUrl({ containerId: "running", ...all, stdin: false, stderr: false });
  const first = await spdy(url, "v4.channel.k8s.io");
  expect(await first.answer).toContain("101");
  const second = await spdy(url, "v4.channel.k8s.io");
  expect(await second.answer).toContain("404");
  first.close();
});

test("Exec over WebSocket v5 half-closes stdin and ends with the exit code", async () => {
  const url = server.execUrl({ containerId: "running", cmd: ["cat", "0"], ...all }).replace("http", "ws");
  const socket = new WebSocket(url, ["v5.channel.k8s.io"]);
  const received: Record<number, string> = {};
  socket.on("message", (data: Buffer) => {
    received[data[0] as number] = (received[data[0] as number] ?? "") + data.subarray(1);
  });
  await new Promise((resolve) => socket.once("open", resolve));
  socket.send(Buffer.concat([Buffer.from([0]), Buffer.from("over the wall")]));
  socket.send(Buffer.from([255, 0]));
  await new Promise((resolve) => socket.once("close", resolve));
  expect(received[1]).toBe("over the wall");
  expect(JSON.parse(received[3] ?? "")).toMatchObject({ status: "Success" });
});

test("Port-forward carries a connection, both half-closes included", async () => {
  const echo = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
  await new Promise((resolve) => echo.once("listening", resolve));
  const { port } = echo.address() as { port: number };
  const client = await spdy(server.portForwardUrl({ podId: "p", ports: [port] }), "portforward.k8s.io");
  await client.answer;
  client.open(1, { streamtype: "error", port: String(port), requestid: "0" });
  client.open(3, { streamtype: "data", port: String(port), requestid: "0" });
  client.send(3, "ping", true);
  await expect.poll(() => client.received.get(3)).toBe("ping");
  client.close();
  echo.close();
});

test("Port-forward to a closed port says so on the error stream", async () => {
  const client = await spdy(server.portForwardUrl({ podId: "p", ports: [1] }), "portforward.k8s.io");
  await client.answer;
  client.open(1, { streamtype: "error", port: "1", requestid: "0" });
  client.open(3, { streamtype: "data", port: "1", requestid: "0" });
  await expect.poll(() => client.received.get(1)).toContain("error forwarding port 1 to pod p");
  client.close();
});

test("Port-forward to a port that has failed holds up neither the other ports nor the client's end", async () => {
  const echo = createServer((socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
  await new Promise((resolve) => echo.once("listening", resolve));
  const { port } = echo.address() as { port: number };
  const url = server.portForwardUrl({ podId: "p", ports: [1, port] }).replace("http", "ws");
  const socket = new WebSocket(url, ["v4.channel.k8s.io"]);
  let received = "";
  socket.on("message", (data: Buffer) => {
    if (data[0] === 2) received += data.subarray(1);
  });
  await new Promise((resolve) => socket.once("open", resolve));
  for (let n = 0; n < 40; n++) socket.send(Buffer.alloc(100_000));
  socket.send(Buffer.from("\x02over"));
  await expect.poll(() => received).toContain("over");
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.close();
  await closed;
  echo.close();
});

test.each(["SPDY", "WebSocket"])(
  "A connection on which nothing comes or goes is given up (%s)",
  async (kind) => {
    const impatient = await createStreamingServer({ host: "127.0.0.1", port: 0, idleMs: 200 }, backend);
    try {
      const url = impatient.portForwardUrl({ podId: "p", ports: [] });
      if (kind === "SPDY") {
        const client = await spdy(url, "portforward.k8s.io");
        expect(await client.answer).toContain("101");
        await client.ended;
      } else {
        const socket = new WebSocket(url.replace("http", "ws"), ["v4.channel.k8s.io"]);
        socket.on("error", () => {});
        await new Promise((resolve) => socket.once("close", resolve));
      }
    } finally {
      await impatient.close();
    }
  },
);

test("closing waits for no client that has not finished its request", async () => {
  const own = await createStreamingServer({ host: "127.0.0.1", port: 0 }, backend);
  const { port } = new URL(
    own.execUrl({ containerId: "running", tty: false, stdin: false, stdout: true, stderr: false }),
  );
  const socket = connect(Number(port), "127.0.0.1");
  socket.on("error", () => {});
  await new Promise((resolve) => socket.write("GET /exec/x HTTP/1.1\r\nHost:", resolve));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const from = performance.now();
  await own.close();
  expect(performance.now() - from).toBeLessThan(8000);
  socket.destroy();
}, 30_000);
