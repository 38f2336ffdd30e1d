import type { Worker } from "node:worker_threads";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { LayerBlob, LayerSource } from "./snapshotter.ts";
import type { FromWorker, ToWorker } from "./workers.ts";

/** Bytes on their way to a worker: enough to keep it busy, little enough to forget. */
const WINDOW = 1024 * 1024;

/** What is said with a thread about one job. */
export type Channel = {
  readonly job: number;
  send(message: ToWorker): void;
  /** Sends, and waits for the answer. */
  ask(message: ToWorker): Promise<unknown>;
  /** Gives the thread a whole tar and waits for its answer. A failure, and the signal, take the job back. */
  read(source: LayerSource, signal: AbortSignal): Promise<unknown>;
  close(): void;
};

export const channelTo = (worker: Worker, job: number): Channel => {
  let settle = Promise.withResolvers<unknown>();
  settle.promise.catch(() => {});
  let outstanding = 0;
  let failure: { error: unknown } | undefined;
  let wake = () => {};
  const fail = (error: unknown) => {
    failure ??= { error };
    settle.reject(error);
    wake();
  };
  const onMessage = (message: FromWorker) => {
    if (message.job !== job) return;
    if (message.is === "taken") {
      outstanding -= message.bytes;
      if (outstanding < WINDOW) wake();
    } else if (message.is === "done") settle.resolve(message.value);
    else fail(new RuntimeError(message.code, message.message));
  };
  const onError = (error: unknown) =>
    fail(
      (error as { code?: string }).code === "ERR_WORKER_OUT_OF_MEMORY"
        ? new RuntimeError("resource-exhausted", "Cannot unpack layer: it has too many files for the memory")
        : error,
    );
  const onExit = () => fail(new RuntimeError("internal", "Cannot work on files: the thread ended"));
  worker.on("message", onMessage).on("error", onError).on("exit", onExit);

  const send = (message: ToWorker) => worker.postMessage(message);

  const ask = async (message: ToWorker): Promise<unknown> => {
    if (failure !== undefined) throw failure.error;
    settle = Promise.withResolvers();
    settle.promise.catch(() => {});
    send(message);
    return await settle.promise;
  };

  const sendBytes = async (chunk: Uint8Array): Promise<void> => {
    // A copy of exact size: the chunk may be a view of memory that its owner goes on using.
    const bytes = new Uint8Array(chunk);
    outstanding += bytes.byteLength;
    worker.postMessage({ do: "chunk", job, bytes } satisfies ToWorker, [bytes.buffer]);
    while (outstanding >= WINDOW && failure === undefined)
      await new Promise<void>((resume) => {
        wake = resume;
      });
    if (failure !== undefined) throw failure.error;
  };

  const readBlob = async (blob: LayerBlob, signal: AbortSignal): Promise<unknown> => {
    const { promise: aborted, reject } = Promise.withResolvers<never>();
    aborted.catch(() => {});
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      signal.throwIfAborted();
      return await Promise.race([ask({ do: "blob", job, blob }), aborted]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  };

  return {
    job,
    send,
    ask,
    async read(source, signal) {
      try {
        if ("file" in source) return await readBlob(source, signal);
        for await (const chunk of untilAborted(source, signal)) await sendBytes(chunk);
        return await ask({ do: "end", job });
      } catch (error) {
        if (failure === undefined) await ask({ do: "stop", job });
        throw error;
      }
    },
    close: () => void worker.off("message", onMessage).off("error", onError).off("exit", onExit),
  };
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
