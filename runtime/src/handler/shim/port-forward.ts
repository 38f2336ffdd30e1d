import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { withShortPath } from "@bulkhead/lib/ttrpc/socket.ts";
import { startProgram } from "../../linux/start-program.ts";
import { namespace } from "./command.ts";

/**
 * A connection into a gVisor sandbox. Its network stack is its own, so nothing outside can dial a loopback port of
 * the pod; `runsc port-forward --stream` hands a socket of ours to the sandbox, which connects it inside.
 */
export async function portForwardRunsc(
  runsc: { binary: string; root: string },
  socketDir: string,
  sandboxId: string,
  port: number,
  signal: AbortSignal,
): Promise<Duplex> {
  const path = join(socketDir, `pf-${randomBytes(8).toString("hex")}`);
  const accepted = Promise.withResolvers<Socket>();
  accepted.promise.catch(() => {});
  await using stack = new AsyncDisposableStack();
  const server = createServer((socket) => accepted.resolve(socket));
  stack.defer(() => {
    server.close();
    rmSync(path, { force: true });
  });
  await listen(server, path);
  // The shim appends its namespace to the root that it is configured with.
  const root = join(runsc.root, namespace);
  const child = startProgram(
    runsc.binary,
    ["--root", root, "port-forward", "--stream", path, sandboxId, String(port)],
    { stdio: ["ignore", "ignore", "pipe"], signal },
  );
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => {
    if (said.length < 4096) said += chunk.toString();
  });
  const connected = Promise.withResolvers<void>();
  child.once("error", (error) =>
    connected.reject(new RuntimeError("internal", `Cannot run ${runsc.binary}: ${error.message}`)),
  );
  child.once("close", (code) => {
    if (code === 0) connected.resolve();
    else
      connected.reject(
        new RuntimeError(
          "failed-precondition",
          `Cannot connect to port ${port} of the pod: ${lastLine(said)}`,
        ),
      );
  });
  try {
    await connected.promise;
    return await accepted.promise;
  } catch (error) {
    void accepted.promise.then((socket) => socket.destroy());
    throw error;
  }
}

const lastLine = (text: string): string => text.trim().split("\n").at(-1) ?? "";

const listen = (server: Server, path: string): Promise<void> =>
  withShortPath(
    path,
    (short) =>
      new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen({ path: short }, () => {
          server.off("error", reject);
          resolve();
        });
      }),
  );
