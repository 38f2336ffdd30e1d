import { randomBytes } from "node:crypto";
import { Socket } from "node:net";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { cancelled } from "@bulkhead/lib/ttrpc/status.ts";
import type { Linux } from "../../linux/linux.ts";
import type { ExecProcess, ExecRequest } from "../handler.ts";
import { processAny } from "./bundle.ts";
import type { TaskClient } from "./connection.ts";
import { holdInput, holdOpen, makeStdio, openReader, openWriter, removeStdio, stdioPaths } from "./stdio.ts";

/** How long a pipe that a child of the finished process holds open may be silent before it is given up. */
const silenceMs = 500;

type ExecContext = {
  task: TaskClient;
  containerId: string;
  /** State directory of the container. */
  stateDir: string;
  linux: Pick<Linux, "mkfifo">;
  startMs: number;
  stopMs: number;
  answerMs: number;
};

/** Runs a process in a container through the shim. */
export async function execInTask(
  { task, containerId, stateDir, linux, startMs, stopMs, answerMs }: ExecContext,
  request: ExecRequest,
  signal: AbortSignal,
): Promise<ExecProcess> {
  const execId = `exec-${randomBytes(8).toString("hex")}`;
  const target = { id: containerId, execId };
  const directory = join(stateDir, execId);
  const stdio = stdioPaths(directory, { tty: request.tty, stdin: request.stdin !== undefined });
  const call = { signal, timeoutMs: startMs };

  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeStdio(directory));
  makeStdio(directory, stdio, linux);
  // Before the readers, which would take a FIFO without a writer for one at its end.
  const held = undo.use(holdOpen(stdio));
  const outputs = [
    copyOut(stdio.stdout, request.stdout),
    ...(stdio.stderr === "" ? [] : [copyOut(stdio.stderr, request.stderr)]),
  ];
  undo.defer(() => {
    for (const output of outputs) output.close();
  });
  const failed = new AsyncDisposableStack();
  undo.use(failed);
  failed.defer(() => {
    // Behind our back: the caller need not wait for a shim that answers nothing.
    const cleanup = { timeoutMs: answerMs };
    void task
      .kill({ ...target, signal: 9 }, cleanup)
      .catch(() => {})
      .then(() => task.delete(target, cleanup))
      .catch(() => {});
  });
  const process = { ...request.process, terminal: request.tty };
  await task.exec({ ...target, ...stdio, terminal: request.tty, spec: processAny(process) }, call);
  await task.start(target, call);
  const input = new AsyncDisposableStack();
  undo.use(input);
  const inputHeld = input.use(holdInput(stdio));
  held[Symbol.dispose]();
  if (request.stdin) {
    const halfClose = () => task.closeIO({ ...target, stdin: true }, { timeoutMs: answerMs });
    void stdinWriter(stdio.stdin, halfClose, AbortSignal.timeout(startMs)).then(
      (writer) => {
        inputHeld[Symbol.dispose]();
        if (input.disposed) writer.destroy();
        else input.defer(() => void writer.destroy());
        feed(request.stdin as Readable, writer);
      },
      // The process ended before it had an input.
      () => {},
    );
  }
  failed.move();
  const resources = undo.move();

  const givenUp = new AbortController();
  const finish = async (): Promise<number> => {
    try {
      const { exitStatus } = await task.wait(target, { signal: givenUp.signal });
      await Promise.all(outputs.map((output) => output.drained()));
      return exitStatus;
    } finally {
      const deleted = task.delete(target, { timeoutMs: answerMs }).catch(() => {});
      if (!givenUp.signal.aborted) await deleted;
      await resources.disposeAsync();
    }
  };
  const exited = finish();
  // Whoever is interested awaits it; a session that was given up must not end the daemon.
  exited.catch(() => {});
  return {
    exited,
    resize: async (width, height) => {
      await task.resizePty({ ...target, width, height }, { timeoutMs: answerMs });
    },
    kill: async () => {
      // A shim that does not tell of its end must not keep its pipes open here.
      const late = new RuntimeError("deadline-exceeded", `Process ${execId} was killed and has not ended`);
      setTimeout(() => givenUp.abort(late), Math.min(stopMs, answerMs)).unref();
      try {
        await task.kill({ ...target, signal: 9, all: true }, { timeoutMs: answerMs });
      } catch (error) {
        if (!hasCode(error, "not-found")) throw error;
      }
    },
  };
}

/** Copies a FIFO to a sink, which stays open. Without a sink, or when it breaks, the output is read and dropped. */
function copyOut(path: string, sink: Writable | undefined) {
  const socket = new Socket({ fd: openReader(path), readable: true, writable: false });
  const end = Promise.withResolvers<void>();
  let last = performance.now();
  let blocked = false;
  socket.on("close", () => end.resolve());
  socket.on("error", () => socket.destroy());
  const usable = () => sink !== undefined && !sink.destroyed && !sink.writableEnded;
  sink?.on("error", () => {});
  const resume = () => {
    blocked = false;
    last = performance.now();
    socket.resume();
  };
  sink?.once("close", resume);
  socket.on("data", (chunk) => {
    last = performance.now();
    if (!usable() || sink?.write(chunk)) return;
    blocked = true;
    socket.pause();
    sink?.once("drain", resume);
  });
  return {
    /** After the process exited: waits for the end of the pipe, or for its silence when a child holds it. */
    drained: async () => {
      while (!socket.destroyed) {
        const quiet = performance.now() - last;
        if (!blocked && quiet >= silenceMs) return;
        await Promise.race([end.promise, sleep(blocked ? 100 : silenceMs - quiet)]);
      }
    },
    close: () => socket.destroy(),
  };
}

/**
 * The writing end of a process's input. When it ends our writer closes, and `halfClose` lets the shim close its
 * own: the process then reads what is left, and the end.
 *
 * Shims open their ends of this FIFO after they have answered Start. Waits for that reader: what is written before
 * it comes would go with the last descriptor.
 */
export async function stdinWriter(
  path: string,
  halfClose: () => Promise<unknown>,
  signal: AbortSignal,
): Promise<Writable> {
  let fd: number | undefined;
  while (fd === undefined)
    try {
      fd = openWriter(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENXIO") throw error;
      await sleep(2, undefined, { signal }).catch(() => {
        throw cancelled("Opening the input", signal);
      });
    }
  const socket = new Socket({ fd, readable: false, writable: true });
  // The process is gone.
  socket.on("error", () => socket.destroy());
  socket.on("close", () => void halfClose().catch(() => {}));
  return socket;
}

function feed(from: Readable, to: Writable): void {
  const end = () => to.end();
  from.on("error", end);
  from.on("close", end);
  to.on("close", () => from.unpipe(to));
  from.pipe(to);
}
