import { constants } from "node:fs";
import { open, rm, stat } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { watchFolder } from "../linux/watch-folder.ts";

/** Messages of conmon's control FIFO (`ctl`): "TYPE HEIGHT WIDTH\n". */
const resizeMessage = (width: number, height: number) => `1 ${height} ${width}\n`;
const REOPEN_MESSAGE = "2 0 0\n";

/**
 * conmon 2.1.6 takes the first line for every line that it reads at once, and answers nothing. So messages to one
 * monitor leave in turn and apart from each other.
 */
const APART_MS = 25;
const turns = new Map<string, Promise<void>>();

const send = (fifo: string, message: () => string | undefined): Promise<void> => {
  const turn = (turns.get(fifo) ?? Promise.resolve()).then(async () => {
    const line = message();
    if (line === undefined) return;
    // Without a reader there is no monitor: ENXIO instead of a wait.
    const file = await open(fifo, constants.O_WRONLY | constants.O_NONBLOCK);
    try {
      await file.write(line);
    } finally {
      await file.close();
    }
  });
  const after = turn.then(
    () => sleep(APART_MS),
    () => {},
  );
  turns.set(fifo, after);
  after.then(() => {
    if (turns.get(fifo) === after) turns.delete(fifo);
  });
  return turn;
};

const sizes = new Map<string, { width: number; height: number }>();

/** Sets the size of the container's terminal. Of several sizes in a row the last one counts. */
export const resizeTerminal = async (fifo: string, width: number, height: number): Promise<void> => {
  sizes.set(fifo, { width, height });
  await send(fifo, () => {
    const size = sizes.get(fifo);
    sizes.delete(fifo);
    return size && resizeMessage(size.width, size.height);
  });
};

/**
 * Makes conmon open its log again and returns when the new file stands at `path`. conmon closes the old file, opens
 * `path.tmp` and renames it, so the file at `path` becomes another one. Where it cannot make that file it ends, and its
 * container with it: so the file is made here, and a full disk fails the rotation alone.
 */
export const reopenLog = async (fifo: string, path: string, signal: AbortSignal): Promise<void> => {
  const identity = async () => {
    try {
      const { ino, dev, birthtimeNs } = await stat(path, { bigint: true });
      return `${dev}:${ino}:${birthtimeNs}`;
    } catch {
      return undefined;
    }
  };
  const before = await identity();
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(10_000)]);
  let wake = () => {};
  using _ = watchFolder(
    dirname(path),
    (name) => {
      if (name === undefined || name === basename(path)) wake();
    },
    { lookMs: 50 },
  );
  const fresh = `${path}.tmp`;
  await makeFile(fresh);
  try {
    await send(fifo, () => REOPEN_MESSAGE);
  } catch (error) {
    await rm(fresh, { force: true });
    throw new RuntimeError("failed-precondition", "Cannot reopen the log: the container is not running", {
      cause: error,
    });
  }
  for (;;) {
    const changed = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const now = await identity();
    if (now !== undefined && now !== before) return;
    const aborted = Promise.withResolvers<never>();
    const abort = () => aborted.reject(late(path, deadline.reason));
    if (deadline.aborted) throw late(path, deadline.reason);
    deadline.addEventListener("abort", abort, { once: true });
    try {
      await Promise.race([changed, aborted.promise]);
    } finally {
      deadline.removeEventListener("abort", abort);
    }
  }
};

const makeFile = async (path: string): Promise<void> => {
  const { O_WRONLY, O_CREAT, O_NOFOLLOW } = constants;
  try {
    await (await open(path, O_WRONLY | O_CREAT | O_NOFOLLOW, 0o640)).close();
  } catch (error) {
    throw new RuntimeError("failed-precondition", `Cannot reopen the log: ${messageOf(error)}`, {
      cause: error,
    });
  }
};

const late = (path: string, reason: unknown): unknown =>
  reason instanceof Error && reason.name === "TimeoutError"
    ? new RuntimeError("deadline-exceeded", `Cannot reopen the log "${path}": its monitor does not answer`)
    : reason;
