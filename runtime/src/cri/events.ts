import type { ContainerEventResponse } from "@bulkhead/lib/gen/cri_pb.js";

/** A reader that is further behind than this is not reading; it is cut off and lists everything anew. */
const maxBehind = 1000;

type Reader = { queue: ContainerEventResponse[]; wake: () => void; cut: boolean };

/** Container events for GetContainerEvents. Nothing is kept for those who come later: they list first. */
export class Events {
  readonly #readers = new Set<Reader>();

  send(event: ContainerEventResponse): void {
    for (const reader of this.#readers) {
      reader.queue.push(event);
      if (reader.queue.length > maxBehind) reader.cut = true;
      reader.wake();
    }
  }

  get listened(): boolean {
    return this.#readers.size > 0;
  }

  async *read(signal: AbortSignal): AsyncGenerator<ContainerEventResponse> {
    const reader: Reader = { queue: [], wake: () => {}, cut: false };
    this.#readers.add(reader);
    const aborted = (): void => reader.wake();
    signal.addEventListener("abort", aborted);
    try {
      while (!signal.aborted && !reader.cut) {
        const event = reader.queue.shift();
        if (event !== undefined) {
          yield event;
          continue;
        }
        await new Promise<void>((resolve) => {
          reader.wake = resolve;
          if (signal.aborted) resolve();
        });
      }
    } finally {
      signal.removeEventListener("abort", aborted);
      this.#readers.delete(reader);
    }
  }
}
