import { constants, openSync } from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import type { Linux } from "../../linux/linux.ts";

const maxLine = 8 << 10;

/**
 * Reads what a shim logs, from the FIFO `log` of its bundle, which must have a reader before the shim starts.
 * Opened for writing as well: with no reader for a while the shim gets EPIPE, which it ignores, and the next
 * daemon reads on.
 */
export function readShimLog(
  bundle: string,
  linux: Pick<Linux, "mkfifo">,
  line: (text: string) => void,
): Disposable {
  const path = join(bundle, "log");
  try {
    linux.mkfifo(path, 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  const socket = new Socket({ fd, readable: true, writable: false });
  let rest = "";
  socket.on("data", (chunk) => {
    const lines = (rest + chunk.toString()).split("\n");
    rest = (lines.pop() ?? "").slice(0, maxLine);
    for (const text of lines) if (text !== "") line(text.slice(0, maxLine));
  });
  socket.on("error", () => socket.destroy());
  socket.unref();
  return { [Symbol.dispose]: () => socket.destroy() };
}
