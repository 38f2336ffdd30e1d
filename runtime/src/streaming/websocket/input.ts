import { PassThrough } from "node:stream";
import type { WebSocket } from "ws";
import type { UnreadOfClient } from "../unread.ts";

/** What a slow reader of one channel may hold back before the whole connection waits for it. */
const maxBuffered = 1024 * 1024;

/** What a client sends on one channel. */
export class Input extends PassThrough {
  readonly #socket: WebSocket;
  readonly #unread: UnreadOfClient;
  #held = 0;

  constructor(socket: WebSocket, unread: UnreadOfClient) {
    super();
    this.#socket = socket;
    this.#unread = unread;
    this.on("drain", () => this.#account());
  }

  /** Every way of reading comes by here. */
  override read(size?: number): unknown {
    const chunk: unknown = super.read(size);
    this.#account();
    return chunk;
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#account(0);
    super._destroy(error, done);
  }

  /** What waits to be read is counted among what was written too, as long as its write is not over. */
  #account(held = this.destroyed ? 0 : Math.max(this.writableLength, this.readableLength)): void {
    const change = held - this.#held;
    this.#held = held;
    this.#unread.change(change);
  }

  /** Takes what came in a message. The sender waits for a slow reader, or its data would pile up here. */
  receive(data: Buffer): void {
    this.write(data);
    this.#account();
    const isOver = this.#held > maxBuffered;
    if (this.#socket.isPaused || (!isOver && this.#unread.hasRoom)) return;
    this.#socket.pause();
    const read = Promise.withResolvers<void>();
    if (isOver) for (const event of ["drain", "close"]) this.once(event, () => read.resolve());
    else read.resolve();
    void Promise.all([read.promise, this.#unread.room()]).then(() => this.#socket.resume());
  }
}
