import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { WebSocketServer } from "ws";
import { portForwardProtocol, servePortForward } from "./port-forward.ts";
import { runAttach, runExec } from "./remote-command.ts";
import { spdyChannels, spdyProtocols } from "./spdy/channels.ts";
import type { StreamingBackend, StreamingServer, StreamRequest } from "./streaming.ts";
import { Tokens } from "./token.ts";
import { Unread } from "./unread.ts";
import { webSocketChannels, webSocketProtocols } from "./websocket/channels.ts";
import { webSocketPortForward } from "./websocket/port-forward.ts";
import { tunnelProtocol, tunnelToken, webSocketTunnel } from "./websocket/tunnel.ts";

type Request =
  | ({ kind: "exec" | "attach" } & StreamRequest)
  | { kind: "portforward"; podId: string; ports: number[] };

/** One message of a WebSocket client: kubectl sends at most 32 KiB, crictl somewhat more. */
const maxMessage = 1024 * 1024;
/** Connections at a time; further ones are hung up on. */
const maxConnections = 512;
/** A connection on which nothing comes or goes is given up, as by kubelet and containerd. */
const idleLimit = 4 * 60 * 60 * 1000;

/**
 * Serves the streaming URLs of CRI's Exec, Attach and PortForward. Listens on loopback: kubelet proxies clients
 * here, and whoever connects must hold a single-use token.
 */
export async function createStreamingServer(
  options: { host: string; port: number; idleMs?: number },
  backend: StreamingBackend,
): Promise<StreamingServer> {
  const { idleMs = idleLimit } = options;
  const tokens = new Tokens<Request>();
  const unread = new Unread();
  const sockets = new Set<Duplex>();
  const server = createServer((_request, response) => {
    response
      .writeHead(400, { "Content-Type": "text/plain" })
      .end("Upgrade to SPDY/3.1 or WebSocket expected\n");
  });
  server.maxConnections = maxConnections;
  const webSockets = new WebSocketServer({
    noServer: true,
    maxPayload: maxMessage,
    perMessageDeflate: false,
    handleProtocols: (offered, request) => {
      const spoken: readonly string[] = (request.url ?? "").startsWith("/portforward/")
        ? [tunnelToken, "v4.channel.k8s.io"]
        : webSocketProtocols;
      return spoken.find((protocol) => offered.has(protocol)) ?? false;
    },
  });
  // The answer names the protocol as the client did; see tunnelToken.
  webSockets.on("headers", (headers) => {
    for (const [index, header] of headers.entries())
      headers[index] = header.replace(tunnelToken, tunnelProtocol);
  });

  server.on("upgrade", (message: IncomingMessage, socket: Socket, head: Buffer) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 30_000);
    const token = /^\/(?:exec|attach|portforward)\/([\w-]+)$/.exec(message.url ?? "")?.[1];
    const request = token === undefined ? undefined : tokens.redeem(token);
    if (!request) return refuse(socket, "404 Not Found", "Unknown or used streaming token");
    const upgrade = (message.headers.upgrade ?? "").toLowerCase();
    if (upgrade === "spdy/3.1") serveSpdy(message, socket, head, request);
    else if (upgrade === "websocket") serveWebSocket(message, socket, head, request);
    else refuse(socket, "400 Bad Request", `Upgrade to SPDY/3.1 or WebSocket expected, not "${upgrade}"`);
  });

  function serveSpdy(message: IncomingMessage, socket: Socket, head: Buffer, request: Request): void {
    const offered = (message.headersDistinct["x-stream-protocol-version"] ?? []).flatMap((line) =>
      line.split(",").map((each) => each.trim()),
    );
    const spoken: readonly string[] = request.kind === "portforward" ? [portForwardProtocol] : spdyProtocols;
    // The oldest clients name no version.
    const protocol = offered.length === 0 ? spoken.at(-1) : spoken.find((each) => offered.includes(each));
    if (protocol === undefined)
      return refuse(
        socket,
        "403 Forbidden",
        `Unable to upgrade: none of ${offered.join(", ")} is spoken here`,
      );
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ${protocol}\r\n\r\n`,
    );
    if (head.length > 0) socket.unshift(head);
    socket.setTimeout(idleMs, () => socket.destroy());
    if (request.kind === "portforward")
      return servePortForward(backend, request.podId, socket, unread.client());
    const { kind } = request;
    spdyChannels(socket, protocol as (typeof spdyProtocols)[number], request, unread.client())
      .then((channels) => (kind === "exec" ? runExec : runAttach)(backend, request, channels))
      .catch(() => socket.destroy());
  }

  function serveWebSocket(message: IncomingMessage, socket: Socket, head: Buffer, request: Request): void {
    const offered = message.headers["sec-websocket-protocol"];
    if (offered !== undefined)
      message.headers["sec-websocket-protocol"] = offered.replace(tunnelProtocol, tunnelToken);
    webSockets.handleUpgrade(message, socket, head, (webSocket) => {
      const { protocol } = webSocket;
      // Only now: it takes the timeouts of before away.
      socket.setTimeout(idleMs, () => socket.destroy());
      if (request.kind === "portforward") {
        if (protocol === tunnelToken)
          servePortForward(backend, request.podId, webSocketTunnel(webSocket), unread.client());
        else webSocketPortForward(backend, request.podId, request.ports, webSocket, unread.client());
        return;
      }
      const spoken = webSocketProtocols.find((each) => each === protocol) ?? "channel.k8s.io";
      const channels = webSocketChannels(webSocket, spoken, request, unread.client());
      (request.kind === "exec" ? runExec : runAttach)(backend, request, channels).catch(() =>
        webSocket.terminate(),
      );
    });
  }

  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, () => resolve());
  });
  const { address, port, family } = server.address() as AddressInfo;
  const base = `http://${family === "IPv6" ? `[${address}]` : address}:${port}`;
  return {
    execUrl: (request) => `${base}/exec/${tokens.issue({ kind: "exec", ...request })}`,
    attachUrl: (request) => `${base}/attach/${tokens.issue({ kind: "attach", ...request })}`,
    portForwardUrl: (request) => `${base}/portforward/${tokens.issue({ kind: "portforward", ...request })}`,
    async close() {
      for (const socket of sockets) socket.destroy();
      // Those that never finished a request would be waited for until their time is over.
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

function refuse(socket: Socket, status: string, text: string): void {
  socket.end(
    `HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
}
