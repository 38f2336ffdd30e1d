import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { WebSocket } from "ws";
import type { StreamingBackend } from "../streaming.ts";
import type { UnreadOfClient } from "../unread.ts";
import { Input } from "./input.ts";

/** Ports one client may ask for. */
const maxPorts = 64;

/**
 * Port-forward over plain WebSocket channels (v4.channel.k8s.io): port i of the request has data channel 2i and
 * error channel 2i+1; the first message on each channel is the port, little endian. One connection per port.
 */
export function webSocketPortForward(
  backend: StreamingBackend,
  podId: string,
  ports: number[],
  socket: WebSocket,
  unread: UnreadOfClient,
): void {
  const closed = new AbortController();
  const send = (channel: number, data: Buffer): Promise<void> =>
    new Promise((resolve) => socket.send(Buffer.concat([Buffer.from([channel]), data]), () => resolve()));
  let open = Math.min(ports.length, maxPorts);
  const inputs = ports.slice(0, maxPorts).map((port, index) => {
    const input = new Input(socket, unread);
    void serve(port, index, input).finally(() => {
      // What a client goes on sending to a port that has ended must not hold up the others.
      input.unpipe();
      input.resume();
      if (--open === 0) socket.close(1000);
    });
    return input;
  });

  async function serve(port: number, index: number, input: Input): Promise<void> {
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
    input.receive(bytes.subarray(1));
  });
  const gone = () => {
    closed.abort();
    unread.close();
    for (const input of inputs) input.destroy();
  };
  socket.on("close", gone);
  socket.on("error", gone);
}
