import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { UnpackTarget } from "./unpack.ts";

export type ToWorker =
  | { do: "unpack"; target: UnpackTarget }
  | { do: "chunk"; bytes: Uint8Array }
  | { do: "end" }
  | { do: "stop" }
  | { do: "measure"; path: string }
  | { do: "remove"; path: string }
  | { do: "quit" };

export type FromWorker =
  | { is: "taken"; bytes: number }
  | { is: "done"; value: unknown }
  | { is: "failed"; code: ErrorCode; message: string };

/** Work on many files, off the main thread. */
export interface FileWorkers extends AsyncDisposable {
  unpack(target: UnpackTarget, tar: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void>;
  measure(path: string): Promise<{ bytes: bigint; inodes: bigint }>;
  remove(path: string): Promise<void>;
}

/** Bytes on their way to a worker: enough to keep it busy, little enough to forget. */
const WINDOW = 1024 * 1024;
const IDLE_MS = 10_000;

/** Beside the source it is TypeScript; a bundle brings it as a program of its own. */
const program = new URL(
  import.meta.url.endsWith(".ts") ? "./worker.ts" : "./snapshot-worker.mjs",
  import.meta.url,
);

/** Small young space: what is unpacked flows through. */
const resourceLimits = { maxYoungGenerationSizeMb: 4 };

type Thread = { worker: Worker; idle?: NodeJS.Timeout };

/** At most one thread a core, made on demand and given up when idle. */
export const createFileWorkers = (most: number = Math.min(4, availableParallelism())): FileWorkers => {
  const threads = new Set<Thread>();
  const free: Thread[] = [];
  const waiting: ((thread: Thread) => void)[] = [];
  let closed = false;

  const acquire = async (): Promise<Thread> => {
    if (closed) throw new RuntimeError("cancelled", "Cannot work on files: the snapshotter is closed");
    const idle = free.pop();
    if (idle !== undefined) {
      clearTimeout(idle.idle);
      return idle;
    }
    if (threads.size >= most) return await new Promise((resolve) => waiting.push(resolve));
    return start();
  };

  const start = (): Thread => {
    const thread: Thread = { worker: new Worker(program, { resourceLimits }) };
    thread.worker.unref();
    // A job that runs gets the error by its own listener; this one keeps an idle thread's from ending the daemon.
    thread.worker.on("error", () => {});
    thread.worker.once("exit", () => {
      threads.delete(thread);
      const at = free.indexOf(thread);
      if (at >= 0) free.splice(at, 1);
      const next = threads.size < most ? waiting.shift() : undefined;
      if (next !== undefined && !closed) next(start());
    });
    threads.add(thread);
    return thread;
  };

  const release = (thread: Thread) => {
    if (!threads.has(thread)) return;
    const next = waiting.shift();
    if (next !== undefined) {
      next(thread);
      return;
    }
    free.push(thread);
    thread.idle = setTimeout(() => quit(thread), IDLE_MS).unref();
  };

  /** Runs one job on a thread of its own; `job` talks, `settled` is the thread's last word. */
  const withThread = async <T>(job: (channel: Channel) => Promise<T>): Promise<T> => {
    const thread = await acquire();
    thread.worker.ref();
    const channel = channelTo(thread.worker);
    try {
      return await job(channel);
    } finally {
      channel.close();
      thread.worker.unref();
      // A thread that failed may have more of the job on its way to it: the next job gets a new one.
      if (channel.failed()) quit(thread);
      else release(thread);
    }
  };

  return {
    unpack: (target, tar, signal) =>
      withThread(async (channel) => {
        channel.send({ do: "unpack", target });
        try {
          for await (const chunk of untilAborted(tar, signal)) await channel.sendBytes(chunk);
        } catch (error) {
          if (!channel.failed()) {
            channel.send({ do: "stop" });
            await channel.settled;
          }
          throw error;
        }
        channel.send({ do: "end" });
        await channel.settled;
      }),
    measure: (path) =>
      withThread(async (channel) => {
        channel.send({ do: "measure", path });
        return (await channel.settled) as { bytes: bigint; inodes: bigint };
      }),
    remove: (path) =>
      withThread(async (channel) => {
        channel.send({ do: "remove", path });
        await channel.settled;
      }),
    async [Symbol.asyncDispose]() {
      closed = true;
      await Promise.all(
        [...threads].map((thread) => {
          const { promise, resolve } = Promise.withResolvers<void>();
          thread.worker.once("exit", () => resolve());
          quit(thread);
          return promise;
        }),
      );
    },
  };
};

/** By its own hand: to terminate() a thread that is loading a native module aborts the process. */
const quit = (thread: Thread): void => {
  thread.worker.ref();
  thread.worker.postMessage({ do: "quit" } satisfies ToWorker);
};

/** The same chunks; ends with the signal's reason even when the source never says another word. */
async function* untilAborted(
  tar: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const source = tar[Symbol.asyncIterator]();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  aborted.catch(() => {});
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  let isOver = false;
  try {
    signal.throwIfAborted();
    for (;;) {
      const { done, value } = await Promise.race([source.next(), aborted]);
      signal.throwIfAborted();
      if (done) {
        isOver = true;
        return;
      }
      yield value;
    }
  } finally {
    signal.removeEventListener("abort", onAbort);
    if (!isOver) source.return?.().catch(() => {});
  }
}

type Channel = {
  send(message: ToWorker): void;
  /** Resolves when the worker can take more; rejects when it failed. */
  sendBytes(chunk: Uint8Array): Promise<void>;
  settled: Promise<unknown>;
  failed(): boolean;
  close(): void;
};

const channelTo = (worker: Worker): Channel => {
  const { promise: settled, resolve, reject } = Promise.withResolvers<unknown>();
  settled.catch(() => {});
  let outstanding = 0;
  let failed = false;
  let wake = () => {};
  const fail = (error: unknown) => {
    failed = true;
    reject(error);
    wake();
  };
  const onMessage = (message: FromWorker) => {
    if (message.is === "taken") {
      outstanding -= message.bytes;
      if (outstanding < WINDOW) wake();
    } else if (message.is === "done") resolve(message.value);
    else fail(new RuntimeError(message.code, message.message));
  };
  const onExit = () => fail(new RuntimeError("internal", "Cannot work on files: the thread ended"));
  worker.on("message", onMessage).on("error", fail).on("exit", onExit);
  return {
    send: (message) => worker.postMessage(message),
    async sendBytes(chunk) {
      // A copy of exact size: the chunk may be a view of memory that its owner goes on using.
      const bytes = new Uint8Array(chunk);
      outstanding += bytes.byteLength;
      worker.postMessage({ do: "chunk", bytes } satisfies ToWorker, [bytes.buffer]);
      while (outstanding >= WINDOW && !failed)
        await new Promise<void>((resume) => {
          wake = resume;
        });
      if (failed) await settled;
    },
    settled,
    failed: () => failed,
    close: () => void worker.off("message", onMessage).off("error", fail).off("exit", onExit),
  };
};
