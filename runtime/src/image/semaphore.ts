/** Lets `slots` holders in at a time; the others wait in the order they came. With one slot it is a mutex. */
export class Semaphore {
  #free: number;
  readonly #queue: (() => void)[] = [];

  constructor(slots: number) {
    this.#free = slots;
  }

  async run<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    await this.#enter(signal);
    try {
      return await work();
    } finally {
      const next = this.#queue.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }

  async #enter(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    const turn = Promise.withResolvers<void>();
    const abort = (): void => {
      const position = this.#queue.indexOf(turn.resolve);
      if (position < 0) return;
      this.#queue.splice(position, 1);
      turn.reject(signal?.reason);
    };
    this.#queue.push(turn.resolve);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      await turn.promise;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }
}
