import { PassThrough } from "node:stream";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { WebSocket } from "ws";
import type { StreamingBackend } from "../streaming.ts";

/** Ports one client may ask for. */
const maxPorts = 64;
const maxBuffered = 1024 * 1024;

/**
 * Port-forward over plain WebSocket channels (v4.channel.k8s.io): port i of the request has data channel 2i and
 * error channel 2i+1; the first message on each channel is the port, little endian. One connection per port.
 */
export function webSocketPortForward(
  backend: StreamingBackend,
  podId: string,
  ports: number[],
  socket: WebSocket,
): void {
  const closed = new AbortController();
  const send = (channel: number, data: Buffer): Promise<void> =>
    new Promise((resolve) => socket.send(Buffer.concat([Buffer.from([channel]), data]), () => resolve()));
  const inputs = ports.slice(0, maxPorts).map((port, index) => {
    const input = new PassThrough();
    void serve(port, index, input);
    return input;
  });

  async function serve(port: number, index: number, input: PassThrough): Promise<void> {
    const name = Buffer.alloc(2);
    name.writeUInt16LE(port);
    await send(2 * index, name);
    await send(2 * index + 1, name);
    try {
      const target = await backend.portForward(podId, port, closed.signal);
      closed.signal.addEventListener("abort", () => target.destroy(), { once: true });
      target.on("error", () => {});
      input.pipe(target);
      for await (const chunk of target) await send(2 * index, chunk as Buffer);
    } catch (error) {
      await send(
        2 * index + 1,
        Buffer.from(`error forwarding port ${port} to pod ${podId}: ${messageOf(error)}`),
      );
    }
  }

  socket.on("message", (data) => {
    const bytes = Buffer.isBuffer(data) ? data : Buffer.concat(data as Buffer[]);
    const channel = bytes[0] ?? 1;
    const input = channel % 2 === 0 ? inputs[channel / 2] : undefined;
    if (!input || bytes.length < 2) return;
    input.write(bytes.subarray(1));
    if (input.writableLength + input.readableLength > maxBuffered && !socket.isPaused) {
      socket.pause();
      input.once("drain", () => socket.resume());
    }
  });
  const gone = () => {
    closed.abort();
    for (const input of inputs) input.destroy();
  };
  socket.on("close", gone);
  socket.on("error", gone);
}
