import { mkdirSync, rmSync } from "node:fs";
import {
  createServer,
  constants as http2,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import { dirname } from "node:path";
import { listenOn } from "@bulkhead/lib/ttrpc/socket.ts";

/** gRPC's UNIMPLEMENTED. */
const unimplemented = "12";

/**
 * Stands where shims are told that containerd is (`-address`), and has none of its services: every call is answered, with
 * UNIMPLEMENTED. runwasi's shims connect to it before they make a container, to ask for images that are WebAssembly and
 * no file system, and without an answer look into the container's root.
 */
export const serveNoEngine = async (path: string): Promise<AsyncDisposable> => {
  const sessions = new Set<ServerHttp2Session>();
  const server = createServer();
  server.on("session", (session) => {
    sessions.add(session);
    session.once("close", () => sessions.delete(session));
    session.on("error", () => {});
  });
  server.on("stream", (stream: ServerHttp2Stream) => {
    stream.on("error", () => {});
    stream.respond(
      {
        [http2.HTTP2_HEADER_STATUS]: 200,
        [http2.HTTP2_HEADER_CONTENT_TYPE]: "application/grpc",
        "grpc-status": unimplemented,
        "grpc-message": "Bulkhead is no containerd",
      },
      { endStream: true },
    );
  });
  mkdirSync(dirname(path), { recursive: true, mode: 0o711 });
  await listenOn(server, path);
  return {
    [Symbol.asyncDispose]: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const session of sessions) session.destroy();
      await closed;
      rmSync(path, { force: true });
    },
  };
};
