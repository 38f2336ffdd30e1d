import { closeSync, constants, mkdirSync, openSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { wallClock } from "@bulkhead/lib/std/wall-clock.ts";
import { LineCutter, type LogStream, timestamp } from "../../logs/cri-log.ts";

const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants;

const openLog = (path: string): number => openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o640);

/**
 * A container's log in the format of {@link LineCutter}. Other than CriLog it holds nothing back: what `write`
 * returned from is in the file, so that it may leave the pipe it came from.
 */
export class LogFile {
  readonly #path: string;
  readonly #cutters = { stdout: new LineCutter("stdout"), stderr: new LineCutter("stderr") };
  #fd: number | undefined;

  constructor(path: string) {
    this.#path = path;
    mkdirSync(dirname(path), { recursive: true });
    this.#fd = openLog(path);
  }

  /** An unfinished line at the end is written as a part (tag P). */
  write(stream: LogStream, chunk: Uint8Array): void {
    if (this.#fd === undefined) return;
    const time = timestamp(wallClock());
    const cutter = this.#cutters[stream];
    const lines = cutter.cut(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength), time);
    const all = Buffer.concat([lines, cutter.flush(time)]);
    for (let at = 0; at < all.length; ) at += writeSync(this.#fd, all, at);
  }

  /** A new file after a rotation; the old one gets nothing more. */
  reopen(): void {
    if (this.#fd === undefined) return;
    const next = openLog(this.#path);
    closeSync(this.#fd);
    this.#fd = next;
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
