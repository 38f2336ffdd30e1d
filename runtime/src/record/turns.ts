import { span } from "@bulkhead/lib/tracing/span.ts";

/** Ranks of {@link Turns}: what is further on its way to a running container goes first. */
export const turn = { start: 0, create: 1, sandbox: 2 } as const;

/** One of {@link turn}. */
export type Rank = (typeof turn)[keyof typeof turn];

/**
 * Lets as much work in at a time as there are processors for. Of pods that start together, all would else share the
 * processors and be ready at the end together; in turns the first are ready long before, and the last no later.
 *
 * A turn is for processors, not for waiting: after `quantumMs` the next one is let in, whatever the work still waits for,
 * so that a plugin that hangs or a guest that boots holds up nobody.
 */
export class Turns {
  readonly #queues: (() => void)[][] = Object.values(turn).map(() => []);
  readonly #quantumMs: number;
  #free: number;

  /** `slots` at least 1; `quantumMs` in milliseconds. */
  constructor(slots: number, quantumMs: number) {
    this.#free = slots;
    this.#quantumMs = quantumMs;
  }

  /** Runs `work` in its turn. Throws what it throws, and `signal`'s reason when that comes before the turn does. */
  async run<T>(rank: Rank, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    await this.#enter(rank, signal);
    let inside = true;
    const leave = (): void => {
      if (inside) this.#leave();
      inside = false;
    };
    const over = setTimeout(leave, this.#quantumMs);
    try {
      return await work();
    } finally {
      clearTimeout(over);
      leave();
    }
  }

  #leave(): void {
    const next = this.#queues.find((queue) => queue.length > 0)?.shift();
    if (next === undefined) this.#free++;
    else next();
  }

  async #enter(rank: Rank, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    const queue = this.#queues[rank]!;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const abort = (): void => {
      const position = queue.indexOf(resolve);
      if (position < 0) return;
      queue.splice(position, 1);
      reject(signal.reason);
    };
    queue.push(resolve);
    signal.addEventListener("abort", abort, { once: true });
    try {
      await span("turn", {}, () => promise);
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }
}
