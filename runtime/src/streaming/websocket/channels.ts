import { Writable } from "node:stream";
import type { WebSocket } from "ws";
import type { Channels, Wanted } from "../channels.ts";
import { statusJson, statusText } from "../status.ts";
import type { UnreadOfClient } from "../unread.ts";
import { Input } from "./input.ts";

/** Subprotocols of remotecommand over WebSocket, best first. base64 ones carry text messages. */
export const webSocketProtocols = [
  "v5.channel.k8s.io",
  "v4.channel.k8s.io",
  "v4.base64.channel.k8s.io",
  "channel.k8s.io",
  "base64.channel.k8s.io",
] as const;
export type WebSocketProtocol = (typeof webSocketProtocols)[number];

const channel = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 } as const;
/** v5: 255 and a channel number half-closes that channel. */
const closeSignal = 255;

/** Splits a WebSocket connection into the channels of remotecommand: the first byte of a message is the channel. */
export function webSocketChannels(
  socket: WebSocket,
  protocol: WebSocketProtocol,
  wanted: Wanted,
  unread: UnreadOfClient,
): Channels {
  const base64 = protocol.includes("base64");
  const closed = new AbortController();
  const send = (number: number, data: Buffer): Promise<void> =>
    new Promise((resolve, reject) => {
      const message = base64
        ? `${number}${data.toString("base64")}`
        : Buffer.concat([Buffer.from([number]), data]);
      socket.send(message, (error) => (error ? reject(error) : resolve()));
    });

  const output = (number: number) =>
    new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        send(number, chunk).then(() => done(), done);
      },
    }).on("error", () => {});

  const inputs = new Map<number, Input>();
  if (wanted.stdin) inputs.set(channel.stdin, new Input(socket, unread));
  if (wanted.tty) inputs.set(channel.resize, new Input(socket, unread));

  socket.on("message", (data, binary) => {
    const bytes = Buffer.isBuffer(data) ? data : Buffer.concat(data as Buffer[]);
    if (bytes.length === 0) return;
    if (protocol === "v5.channel.k8s.io" && bytes[0] === closeSignal) {
      inputs.get(bytes[1] ?? 0)?.end();
      return;
    }
    const number = base64 || !binary ? (bytes[0] as number) - 0x30 : (bytes[0] as number);
    const payload = base64 ? Buffer.from(bytes.toString("latin1", 1), "base64") : bytes.subarray(1);
    const input = inputs.get(number);
    if (!input || input.writableEnded || payload.length === 0) return;
    input.receive(payload);
  });
  const gone = () => {
    closed.abort();
    unread.close();
    for (const input of inputs.values()) input.end();
  };
  socket.on("close", gone);
  socket.on("error", gone);

  const stdout = wanted.stdout ? output(channel.stdout) : undefined;
  const stderr = wanted.stderr && !wanted.tty ? output(channel.stderr) : undefined;
  // An empty message tells the client that the connection stands.
  send(stdout ? channel.stdout : stderr ? channel.stderr : channel.error, Buffer.alloc(0)).catch(() => {});

  const stdin = inputs.get(channel.stdin);
  const resize = inputs.get(channel.resize);
  return {
    ...(stdin && { stdin }),
    ...(stdout && { stdout }),
    ...(stderr && { stderr }),
    ...(resize && { resize }),
    closed: closed.signal,
    async finish(outcome) {
      if (closed.signal.aborted) return;
      await Promise.allSettled([stdout, stderr].map((stream) => stream && ended(stream)));
      const text = protocol.startsWith("v") ? statusJson(outcome) : statusText(outcome);
      await send(channel.error, Buffer.from(text)).catch(() => {});
      socket.close(1000);
    },
  };
}

const ended = (stream: Writable): Promise<void> => new Promise((resolve) => stream.end(() => resolve()));
