import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

type Pull<T> = { result: Promise<T>; waiting: number; controller: AbortController; left?: NodeJS.Timeout };

/**
 * Pulls under way. A caller whose deadline passes or who goes away leaves alone: the pull goes on, and the retry
 * joins it. One that nobody comes back to within `lingerMs` is given up.
 */
export class Pulls<T> implements AsyncDisposable {
  readonly #lingerMs: number;
  readonly #pulls = new Map<string, Pull<T>>();

  constructor(lingerMs: number) {
    this.#lingerMs = lingerMs;
  }

  get running(): number {
    return this.#pulls.size;
  }

  async run(key: string, work: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    signal.throwIfAborted();
    const pull = this.#pulls.get(key) ?? this.#launch(key, work);
    clearTimeout(pull.left);
    pull.waiting++;
    const gone = Promise.withResolvers<never>();
    const leave = (): void => gone.reject(signal.reason);
    signal.addEventListener("abort", leave, { once: true });
    try {
      return await Promise.race([pull.result, gone.promise]);
    } finally {
      signal.removeEventListener("abort", leave);
      pull.waiting--;
      if (pull.waiting === 0 && this.#pulls.get(key) === pull) {
        const give = () =>
          pull.controller.abort(new RuntimeError("cancelled", "nobody waits for the pull any more"));
        pull.left = setTimeout(give, this.#lingerMs);
        pull.left.unref();
      }
    }
  }

  #launch(key: string, work: (signal: AbortSignal) => Promise<T>): Pull<T> {
    const controller = new AbortController();
    const result = work(controller.signal).finally(() => {
      clearTimeout(pull.left);
      this.#pulls.delete(key);
    });
    result.catch(() => {});
    const pull: Pull<T> = { result, waiting: 0, controller };
    this.#pulls.set(key, pull);
    return pull;
  }

  /** Ends every pull and waits until it has cleaned up. */
  async [Symbol.asyncDispose](): Promise<void> {
    const all = [...this.#pulls.values()];
    for (const { controller } of all)
      controller.abort(new RuntimeError("cancelled", "the runtime is shutting down"));
    await Promise.allSettled(all.map(({ result }) => result));
  }
}
