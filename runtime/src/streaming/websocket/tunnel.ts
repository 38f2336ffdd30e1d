import { Duplex } from "node:stream";
import type { WebSocket } from "ws";

/** Subprotocol under which a SPDY connection for port-forward runs inside WebSocket messages. */
export const tunnelProtocol = "SPDY/3.1+portforward.k8s.io";
/** The same without the slash, which no token may hold (RFC 6455, 4.1), so that ws refuses the client's name. */
export const tunnelToken = "SPDY-3.1+portforward.k8s.io";

/** The bytes inside a WebSocket's binary messages as one duplex. */
export function webSocketTunnel(socket: WebSocket): Duplex {
  const tunnel = new Duplex({
    allowHalfOpen: true,
    read: () => socket.resume(),
    write: (chunk: Buffer, _encoding, done) =>
      socket.send(chunk, { binary: true }, (error) => done(error ?? null)),
    final: (done) => {
      socket.close(1000);
      done();
    },
    destroy: (error, done) => {
      socket.terminate();
      done(error);
    },
  });
  socket.on("message", (data) => {
    if (!tunnel.push(Buffer.isBuffer(data) ? data : Buffer.concat(data as Buffer[]))) socket.pause();
  });
  socket.on("close", () => tunnel.push(null));
  socket.on("error", () => tunnel.destroy());
  return tunnel;
}
