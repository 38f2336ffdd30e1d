import { constants, openSync } from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Linux } from "../../linux/linux.ts";

const maxLine = 8 << 10;
/** A MiB a second: a shim that logs without end waits, and nobody else. */
const bytesPerMs = 1 << 10;
/** As much of a line as an error carries. */
const maxSaid = 400;
/** What a shim has to say of a failure may come a moment after its answer. */
const lastWordsMs = 50;

export type ShimLog = Disposable & {
  /** Does `work`; where that fails, the error carries what the shim meanwhile logged as its last error. */
  explain<T>(work: () => Promise<T>): Promise<T>;
};

/**
 * Reads what a shim logs, from the FIFO `log` of its bundle, which must have a reader before the shim starts.
 * Opened for writing as well: with no reader for a while the shim gets EPIPE, which it ignores, and the next
 * daemon reads on.
 */
export function readShimLog(
  bundle: string,
  linux: Pick<Linux, "mkfifo">,
  line: (text: string) => void,
): ShimLog {
  const path = join(bundle, "log");
  try {
    linux.mkfifo(path, 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  const socket = new Socket({ fd, readable: true, writable: false });
  let rest = "";
  let pause: NodeJS.Timeout | undefined;
  let last: { said: string } | undefined;
  const take = (text: string): void => {
    line(text);
    const said = errorSaid(text);
    if (said !== undefined) last = { said };
  };
  socket.on("data", (chunk) => {
    const lines = (rest + chunk.toString()).split("\n");
    rest = (lines.pop() ?? "").slice(0, maxLine);
    for (const text of lines) if (text !== "") take(text.slice(0, maxLine));
    socket.pause();
    pause = setTimeout(() => socket.resume(), chunk.length / bytesPerMs).unref();
  });
  socket.on("error", () => socket.destroy());
  socket.unref();
  return {
    async explain(work) {
      const before = last;
      try {
        return await work();
      } catch (error) {
        await sleep(lastWordsMs);
        throw last === undefined || last === before ? error : explained(error, last.said);
      }
    },
    [Symbol.dispose]: () => {
      clearTimeout(pause);
      socket.destroy();
    },
  };
}

const explained = (error: unknown, said: string): unknown =>
  !(error instanceof RuntimeError) || error.message.includes(said)
    ? error
    : new RuntimeError(error.code, `${error.message}; the shim's last error: ${said}`, { cause: error });

/**
 * What a line of a shim's log says went wrong; undefined where it is no error. Shims write logrus' text:
 * `time="…" level=error msg="…" error="…"`.
 */
export const errorSaid = (line: string): string | undefined => {
  if (!/^(time=("[^"]*"|\S+) )?level="?(error|fatal|panic)\b/i.test(line)) return undefined;
  // Kata marks so what it complains about at each start of its Go shim.
  if (/ type=bug( |$)/.test(line)) return undefined;
  const said = ["msg", "error"]
    .map((key) => field(line, key))
    .filter((text) => text !== "")
    .join(": ");
  return said === "" ? undefined : said.slice(0, maxSaid);
};

const field = (line: string, key: string): string => {
  const [, written = ""] = new RegExp(` ${key}=("(?:[^"\\\\]|\\\\.)*"|\\S+)`).exec(line) ?? [];
  return unquoted(written)
    .replace(/[\p{Cc}\s]+/gu, " ")
    .trim();
};

/** Go's quotes are nearly JSON's. */
const unquoted = (written: string): string => {
  if (!written.startsWith('"')) return written;
  try {
    return String(JSON.parse(written));
  } catch {
    return written.replace(/^"|"$/g, "");
  }
};
