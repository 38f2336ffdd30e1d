type Flight<T> = { result: Promise<T>; waiting: number; controller: AbortController };

/**
 * Shares work under way: calls with a key that is already in flight wait for that result. A caller that gives up
 * leaves alone; the work itself is aborted when nobody waits any more.
 */
export class SingleFlight<T> {
  readonly #flights = new Map<string, Flight<T>>();

  async run(key: string, work: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    for (;;) {
      signal.throwIfAborted();
      const joined = this.#flights.get(key);
      const flight = joined ?? this.#launch(key, work);
      try {
        return await this.#wait(flight, signal);
      } catch (error) {
        // Another caller's work may have failed for that caller's reasons: its credentials, its mirror.
        if (joined === undefined || signal.aborted) throw error;
      }
    }
  }

  #launch(key: string, work: (signal: AbortSignal) => Promise<T>): Flight<T> {
    const controller = new AbortController();
    const result = work(controller.signal).finally(() => this.#flights.delete(key));
    result.catch(() => {});
    const flight = { result, waiting: 0, controller };
    this.#flights.set(key, flight);
    return flight;
  }

  async #wait(flight: Flight<T>, signal: AbortSignal): Promise<T> {
    flight.waiting++;
    const left = Promise.withResolvers<never>();
    const leave = (): void => left.reject(signal.reason);
    signal.addEventListener("abort", leave, { once: true });
    try {
      return await Promise.race([flight.result, left.promise]);
    } finally {
      signal.removeEventListener("abort", leave);
      flight.waiting--;
      if (flight.waiting === 0 && signal.aborted) {
        flight.controller.abort(signal.reason);
        // Whoever was last stays until the work has cleaned up behind itself.
        await flight.result.catch(() => {});
      }
    }
  }
}
