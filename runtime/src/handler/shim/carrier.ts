import { closeSync, constants, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import type { Linux } from "../../linux/linux.ts";

/** Where lines are to stand: the log's inode, its size before them, and how many bytes they are. */
export type LogPlace = { inode: number; size: number; length: number };

/** Of a place, as text in the file's beginning. */
const headerLength = 64;
/** A pipe of default size has no more. */
const maxBytes = 64 << 10;

/**
 * Where an output is between its pipe and its log: in a file that it is moved to with the place that it is to have in the
 * log. splice(2) takes from the pipe exactly what it puts into the file, also when we are killed in it, and the log's
 * size tells whether it was written there. So a daemon that is killed, at whatever moment, costs no line and leaves none
 * twice.
 */
export class Carrier {
  readonly #linux: Pick<Linux, "splice">;
  #fd: number | undefined;

  constructor(path: string, linux: Pick<Linux, "splice">) {
    this.#linux = linux;
    try {
      this.#fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch {
      // No room for it: a kill may leave lines twice then.
    }
  }

  /** What an earlier daemon took out of the pipe, and where it was about to write it. */
  left(): { place: LogPlace; bytes: Buffer } | undefined {
    if (this.#fd === undefined || fstatSync(this.#fd).size <= headerLength) return undefined;
    const all = Buffer.alloc(headerLength + maxBytes);
    const text = all.subarray(0, readSync(this.#fd, all, 0, all.length, 0));
    const [inode = 0, size = 0, length = 0] = text.toString("latin1", 0, headerLength).split(" ").map(Number);
    return { place: { inode, size, length }, bytes: text.subarray(headerLength) };
  }

  /** Takes up to `count` bytes out of a pipe; returns how many it took, as far as there is room. */
  take(pipe: number, count: number, { inode, size, length }: LogPlace): number {
    if (this.#fd === undefined) return 0;
    let taken = 0;
    try {
      writeSync(this.#fd, `${inode} ${size} ${length} `.padEnd(headerLength), 0, "latin1");
      while (taken < count) taken += this.#linux.splice(pipe, this.#fd, headerLength + taken, count - taken);
    } catch {
      // The state directory is full.
    }
    return taken;
  }

  /** The log has it. */
  drop(): void {
    if (this.#fd !== undefined) ftruncateSync(this.#fd);
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
