import { chmodSync, closeSync, constants, openSync, rmSync } from "node:fs";
import { connect, type Server, type Socket } from "node:net";
import { basename, dirname } from "node:path";
import { messageOf, RuntimeError } from "../std/errors.ts";

/** sun_path holds 108 bytes with its NUL. */
const maxSocketPath = 107;
/** O_PATH: node:fs names no constant for it. */
const O_PATH = 0o10000000;

/** `unix:///run/x.sock` or a bare path. */
export const socketPath = (address: string): string => address.replace(/^unix:\/\//, "");

/**
 * Runs `use` with a name for the socket that fits into sun_path: a long path is reached through a descriptor of
 * its directory. `use` must have made its system call when its promise settles.
 */
export async function withShortPath<T>(path: string, use: (path: string) => Promise<T>): Promise<T> {
  if (Buffer.byteLength(path) <= maxSocketPath) return await use(path);
  const directory = openSync(dirname(path), constants.O_DIRECTORY | O_PATH);
  try {
    return await use(`/proc/self/fd/${directory}/${basename(path)}`);
  } finally {
    closeSync(directory);
  }
}

/** Has a server listen on a Unix socket, for root alone; one that an earlier process left makes way. */
export async function listenOn(server: Server, path: string): Promise<void> {
  rmSync(path, { force: true });
  await withShortPath(
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
  chmodSync(path, 0o600);
}

/** A connected Unix socket; rejects with `unavailable` when nobody listens. */
export async function connectSocket(address: string, signal: AbortSignal): Promise<Socket> {
  const path = socketPath(address);
  try {
    return await withShortPath(
      path,
      (short) =>
        new Promise<Socket>((resolve, reject) => {
          signal.throwIfAborted();
          const socket = connect({ path: short });
          const abort = () => socket.destroy(signal.reason);
          signal.addEventListener("abort", abort, { once: true });
          socket.once("error", reject);
          socket.once("connect", () => {
            socket.off("error", reject);
            signal.removeEventListener("abort", abort);
            resolve(socket);
          });
        }),
    );
  } catch (error) {
    throw new RuntimeError("unavailable", `Cannot connect to ${path}: ${messageOf(error)}`, { cause: error });
  }
}
