/** Bytes that one client's streams may hold for slow readers, and what it may hold in any case. */
const ofOne = 4 * 1024 * 1024;
const ofOneAlways = 64 * 1024;
/** Of all clients together. */
const ofAll = 64 * 1024 * 1024;

/** What a client has sent and nobody has read yet: within one client's bound, and within that of all. */
export class Unread {
  #held = 0;
  readonly #most: number;
  readonly #waiting = new Set<() => void>();

  constructor(most = ofAll) {
    this.#most = most;
  }

  client(): UnreadOfClient {
    return new UnreadOfClient(this);
  }

  get held(): number {
    return this.#held;
  }

  get isFull(): boolean {
    return this.#held >= this.#most;
  }

  change(bytes: number): void {
    this.#held += bytes;
    if (bytes >= 0 || this.isFull) return;
    for (const wake of [...this.#waiting]) wake();
  }

  get waiting(): Set<() => void> {
    return this.#waiting;
  }
}

/** One client's part. It is to be closed with the client. */
export class UnreadOfClient {
  #held = 0;
  #closed = false;
  readonly #all: Unread;
  #wake: (() => void) | undefined;

  constructor(all: Unread) {
    this.#all = all;
  }

  /** Says that so many bytes more, or fewer, wait for their readers. */
  change(bytes: number): void {
    if (this.#closed || bytes === 0) return;
    this.#held += bytes;
    this.#all.change(bytes);
    if (bytes < 0) this.#wake?.();
  }

  get held(): number {
    return this.#held;
  }

  get hasRoom(): boolean {
    return this.#closed || this.#held < ofOneAlways || (this.#held < ofOne && !this.#all.isFull);
  }

  /** Settles when the client may send on; one waits at a time. */
  async room(): Promise<void> {
    if (this.hasRoom) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => void (this.hasRoom && resolve());
    this.#wake = wake;
    this.#all.waiting.add(wake);
    await promise;
    this.#all.waiting.delete(wake);
    this.#wake = undefined;
  }

  close(): void {
    this.change(-this.#held);
    this.#closed = true;
    this.#wake?.();
  }
}
