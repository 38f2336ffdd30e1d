import type { ContainerEventResponse } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** A reader that is further behind than this is not reading; it is cut off, with an error, and lists everything anew. */
const maxBehind = 1000;

type Reader = { queue: ContainerEventResponse[]; wake: () => void; cut: boolean };

/** Container events for GetContainerEvents. Nothing is kept for those who come later: they list first. */
export class Events {
  readonly #readers = new Set<Reader>();

  send(event: ContainerEventResponse): void {
    for (const reader of this.#readers) {
      if (reader.cut) continue;
      reader.queue.push(event);
      if (reader.queue.length > maxBehind) {
        reader.cut = true;
        reader.queue.length = 0;
      }
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
      while (!signal.aborted) {
        if (reader.cut)
          throw new RuntimeError(
            "resource-exhausted",
            `Cannot send more events: ${maxBehind} wait to be read; list the containers and begin anew`,
          );
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
