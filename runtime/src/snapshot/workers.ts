import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { UnpackLimits } from "./apply.ts";
import { type Channel, channelTo } from "./channel.ts";
import type { Sealed } from "./layer-tree.ts";
import type { LayerBlob, LayerSource } from "./snapshotter.ts";

export type UnpackTarget = {
  /** A directory for overlayfs, or an EROFS image. */
  form: "directory" | "erofs";
  /** An empty directory that nobody else touches, or a file that is to be made. */
  path: string;
  limits: UnpackLimits;
};

export type ToWorker =
  | { do: "unpack"; job: number; target: UnpackTarget }
  | { do: "blob"; job: number; blob: LayerBlob }
  | { do: "chunk"; job: number; bytes: Uint8Array }
  | { do: "end"; job: number }
  | { do: "seal"; job: number; parents: string[] }
  | { do: "stop"; job: number }
  | { do: "measure"; job: number; path: string }
  | { do: "digest"; job: number; path: string }
  | { do: "remove"; job: number; path: string }
  | { do: "quit" };

export type FromWorker =
  | { is: "taken"; job: number; bytes: number }
  | { is: "done"; job: number; value: unknown }
  | { is: "failed"; job: number; code: ErrorCode; message: string };

/** A layer whose tar was read; it is not whole before `seal`, which may ask the layers below. */
export type Unpacked = {
  needsBelow: boolean;
  seal(parents: string[]): Promise<Sealed>;
  abandon(): Promise<void>;
};

/** Work on many files, off the main thread. */
export interface FileWorkers extends AsyncDisposable {
  unpack(target: UnpackTarget, source: LayerSource, signal: AbortSignal): Promise<Unpacked>;
  measure(path: string): Promise<{ bytes: bigint; inodes: bigint }>;
  digest(path: string): Promise<string>;
  remove(path: string): Promise<void>;
}

const IDLE_MS = 10_000;

/** Beside the source it is TypeScript; a bundle brings it as a program of its own. */
const program = new URL(
  import.meta.url.endsWith(".ts") ? "./worker.ts" : "./snapshot-worker.mjs",
  import.meta.url,
);

/** Small young space: what is unpacked flows through. A layer of too many files ends its thread, not the daemon. */
const resourceLimits = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 1536 };

/** `jobs` counts what the thread keeps, be it at work on it or not. */
type Thread = { worker: Worker; jobs: number; idle?: NodeJS.Timeout };

/** At most one thread a core, made on demand and given up when idle. */
export const createFileWorkers = (most: number = Math.min(4, availableParallelism())): FileWorkers => {
  const threads = new Set<Thread>();
  const free: Thread[] = [];
  const waiting: ((thread: Thread) => void)[] = [];
  let closed = false;
  let serial = 0;

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
    const thread: Thread = { worker: new Worker(program, { resourceLimits }), jobs: 0 };
    thread.worker.unref();
    // Each job has a listener, for messages and errors.
    thread.worker.setMaxListeners(0);
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

  /** The thread may take another job; what it keeps of this one stays. */
  const release = (thread: Thread) => {
    if (!threads.has(thread)) return;
    const next = waiting.shift();
    if (next !== undefined) {
      next(thread);
      return;
    }
    free.push(thread);
    rest(thread);
  };

  const rest = (thread: Thread) => {
    if (closed || thread.jobs > 0 || !free.includes(thread)) return;
    clearTimeout(thread.idle);
    thread.idle = setTimeout(() => quit(thread), IDLE_MS).unref();
  };

  const openJob = async (): Promise<{ thread: Thread; channel: Channel; close: () => void }> => {
    const thread = await acquire();
    if (thread.jobs++ === 0) thread.worker.ref();
    const channel = channelTo(thread.worker, serial++);
    return {
      thread,
      channel,
      close() {
        channel.close();
        if (--thread.jobs > 0) return;
        thread.worker.unref();
        rest(thread);
      },
    };
  };

  /** A job of one question and one answer. */
  const ask = async <T>(message: (job: number) => ToWorker): Promise<T> => {
    const { thread, channel, close } = await openJob();
    try {
      return (await channel.ask(message(channel.job))) as T;
    } finally {
      release(thread);
      close();
    }
  };

  return {
    async unpack(target, source, signal) {
      const { thread, channel, close } = await openJob();
      const { job } = channel;
      let needsBelow: boolean;
      try {
        channel.send({ do: "unpack", job, target });
        const answer = await channel.read(source, signal);
        ({ needsBelow } = answer as { needsBelow: boolean });
      } catch (error) {
        close();
        throw error;
      } finally {
        release(thread);
      }
      const last = async <T>(message: ToWorker): Promise<T> => {
        try {
          return (await channel.ask(message)) as T;
        } finally {
          close();
        }
      };
      return {
        needsBelow,
        seal: (parents) => last<Sealed>({ do: "seal", job, parents }),
        abandon: () => last<void>({ do: "stop", job }).catch(() => {}),
      };
    },
    measure: (path) => ask((job) => ({ do: "measure", job, path })),
    digest: (path) => ask((job) => ({ do: "digest", job, path })),
    remove: (path) => ask((job) => ({ do: "remove", job, path })),
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
