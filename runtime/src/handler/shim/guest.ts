import { connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * A connection to a port of a virtual machine. The guest's loopback is its own, and the pod's network namespace holds
 * but the wire to it: so it is dialled from the node by the pod's addresses, as any other pod would. A server that
 * listens on the guest's loopback alone cannot be reached. `addresses` have prefix lengths.
 */
export async function dialGuest(
  addresses: readonly string[],
  port: number,
  signal: AbortSignal,
): Promise<Duplex> {
  const hosts = addresses
    .flatMap((cidr) => cidr.split("/")[0] ?? [])
    .filter((host) => !host.startsWith("fe80:"));
  let last: unknown = new Error("the pod has no address");
  for (const host of hosts)
    try {
      return await dial(host, port, signal);
    } catch (error) {
      signal.throwIfAborted();
      last = error;
    }
  throw new RuntimeError(
    "failed-precondition",
    `Cannot connect to port ${port} of the pod: ${messageOf(last)}; in a virtual machine a server must listen on the pod's address, not on its loopback alone`,
    { cause: last },
  );
}

const dial = (host: string, port: number, signal: AbortSignal): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    const abort = (): void => void socket.destroy(signal.reason as Error);
    signal.addEventListener("abort", abort, { once: true });
    const settle = (): void => signal.removeEventListener("abort", abort);
    socket.once("error", (error) => {
      settle();
      reject(error);
    });
    socket.once("connect", () => {
      settle();
      resolve(socket);
    });
  });
