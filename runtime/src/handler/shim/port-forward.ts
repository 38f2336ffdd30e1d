import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { listenOn } from "@bulkhead/lib/ttrpc/socket.ts";
import { Semaphore } from "../../image/semaphore.ts";
import { startProgram } from "../../linux/start-program.ts";
import { waitFor } from "../../record/lock.ts";
import { namespace } from "./command.ts";

/** Connections in the making, each of which is a runsc: of the node, and of one pod. */
const ofNode = new Semaphore(32);
const ofPod = 8;
const podTurns = new Map<string, { turns: Semaphore; users: number }>();
/** A sandbox whose control socket hangs is given up. */
const patience = 30_000;

const inTurn = async <T>(sandboxId: string, work: () => Promise<T>, signal: AbortSignal): Promise<T> => {
  const pod = podTurns.get(sandboxId) ?? { turns: new Semaphore(ofPod), users: 0 };
  podTurns.set(sandboxId, pod);
  pod.users++;
  try {
    return await pod.turns.run(() => ofNode.run(work, signal), signal);
  } finally {
    if (--pod.users === 0) podTurns.delete(sandboxId);
  }
};

type Runsc = { binary: string; root: string };

/**
 * A connection into a gVisor sandbox. Its network stack is its own, so nothing outside can dial a loopback port of
 * the pod; `runsc port-forward --stream` hands a socket of ours to the sandbox, which connects it inside.
 */
export async function portForwardRunsc(
  runsc: Runsc,
  socketDir: string,
  sandboxId: string,
  port: number,
  signal: AbortSignal,
  patienceMs = patience,
): Promise<Duplex> {
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(patienceMs)]);
  try {
    return await inTurn(sandboxId, () => connectBy(runsc, socketDir, sandboxId, port, deadline), deadline);
  } catch (error) {
    if (!deadline.aborted || signal.aborted) throw error;
    throw new RuntimeError(
      "deadline-exceeded",
      `Cannot connect to port ${port} of the pod: its sandbox did not answer in time`,
      { cause: error },
    );
  }
}

const connectBy = async (
  runsc: Runsc,
  socketDir: string,
  sandboxId: string,
  port: number,
  signal: AbortSignal,
): Promise<Duplex> => {
  const path = join(socketDir, `pf-${randomBytes(8).toString("hex")}`);
  const accepted = Promise.withResolvers<Socket>();
  accepted.promise.catch(() => {});
  await using stack = new AsyncDisposableStack();
  const server = createServer((socket) => accepted.resolve(socket));
  stack.defer(() => {
    server.close();
    rmSync(path, { force: true });
  });
  await listenOn(server, path);
  // The shim appends its namespace to the root that it is configured with.
  const root = join(runsc.root, namespace);
  const child = startProgram(
    runsc.binary,
    ["--root", root, "port-forward", "--stream", path, sandboxId, String(port)],
    { stdio: ["ignore", "ignore", "pipe"], signal, killSignal: "SIGKILL" },
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
    return await waitFor(accepted.promise, signal);
  } catch (error) {
    accepted.promise.then((socket) => socket.destroy()).catch(() => {});
    throw error;
  }
};

const lastLine = (text: string): string => text.trim().split("\n").at(-1) ?? "";
