/**
 * One holder at a time per id, in the order of asking. Waiting ends with the caller's signal; holding does not.
 */
export class Locks {
  readonly #tails = new Map<string, Promise<void>>();

  /** Runs `work` alone for `id`. */
  async run<T>(id: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    const before = this.#tails.get(id) ?? Promise.resolve();
    const mine = Promise.withResolvers<void>();
    const tail = before.then(() => mine.promise);
    this.#tails.set(id, tail);
    const leave = (): void => {
      mine.resolve();
      if (this.#tails.get(id) === tail) this.#tails.delete(id);
    };
    try {
      await waitFor(before, signal);
    } catch (error) {
      // Our place in the queue stays until those before us are through.
      void before.then(leave);
      throw error;
    }
    try {
      return await work();
    } finally {
      leave();
    }
  }
}

/** Waits for `promise`, at most until `signal` is aborted, which throws its reason. */
export const waitFor = async <T>(promise: Promise<T>, signal: AbortSignal): Promise<T> => {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = (): void => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
};
