import { waitFor } from "./lock.ts";

/** Counts what is being done to a thing, so that whoever ends it can wait until the last one is through. */
export class Activity {
  readonly #busy = new Map<string, { count: number; idle: PromiseWithResolvers<void> }>();

  begin(id: string): Disposable {
    const entry = this.#busy.get(id) ?? { count: 0, idle: Promise.withResolvers<void>() };
    entry.count++;
    this.#busy.set(id, entry);
    return {
      [Symbol.dispose]: () => {
        entry.count--;
        if (entry.count > 0) return;
        this.#busy.delete(id);
        entry.idle.resolve();
      },
    };
  }

  /** Settles when nothing is being done to `id`; rejects with the signal's reason when that comes first. */
  async idle(id: string, signal: AbortSignal): Promise<void> {
    const busy = this.#busy.get(id);
    if (busy !== undefined) await waitFor(busy.idle.promise, signal);
  }
}
