import { waitFor } from "../record/lock.ts";

/** Lets callers wait for the exit of a container. */
export class Exits {
  readonly #waits = new Map<string, PromiseWithResolvers<void>>();

  /** Settles at the next {@link happened} of this id. The caller looks at the state first. */
  wait(id: string, signal: AbortSignal): Promise<void> {
    let wait = this.#waits.get(id);
    if (wait === undefined) {
      wait = Promise.withResolvers<void>();
      this.#waits.set(id, wait);
    }
    return waitFor(wait.promise, signal);
  }

  happened(id: string): void {
    this.#waits.get(id)?.resolve();
    this.#waits.delete(id);
  }
}
