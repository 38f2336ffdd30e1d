import { closeSync, constants, fstatSync, ftruncateSync, mkdirSync, openSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { wallClock } from "@bulkhead/lib/std/wall-clock.ts";
import { LineCutter, type LogStream, timestamp } from "../../logs/cri-log.ts";
import type { LogPlace } from "./carrier.ts";

const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants;

/** Appending, never through a link in the last place: the path is in a directory that others can write to. */
const openLog = (path: string): number => openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o640);

/**
 * A container's log as kubelet reads it (Kubernetes CRI logging: `TIME STREAM P|F TEXT`). Holds nothing back: what
 * `write` returned from is in the file, so that it may leave the pipe it came from. Keeps the file that it opened: a
 * rename changes nothing until `reopen`.
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

  /** An unfinished line at the end is written as a part (tag P). `before` is told where the lines are to stand. */
  write(stream: LogStream, chunk: Uint8Array, before?: (place: LogPlace) => void): void {
    if (this.#fd === undefined) return;
    const time = timestamp(wallClock());
    const cutter = this.#cutters[stream];
    const lines = cutter.cut(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength), time);
    const all = Buffer.concat([lines, cutter.flush(time)]);
    if (before) {
      const { ino: inode, size } = fstatSync(this.#fd);
      before({ inode, size, length: all.length });
    }
    let at = 0;
    try {
      while (at < all.length) at += writeSync(this.#fd, all, at);
    } catch (error) {
      takeBack(this.#fd, all.subarray(0, at));
      throw error;
    }
  }

  /** Writes what another was about to write at `place`, unless it stands there. */
  complete(stream: LogStream, chunk: Uint8Array, place: LogPlace): void {
    if (this.#fd === undefined) return;
    const { ino, size } = fstatSync(this.#fd);
    if (ino === place.inode && size >= place.size + place.length) return;
    // It was killed in the middle.
    if (ino === place.inode && size > place.size) ftruncateSync(this.#fd, place.size);
    this.write(stream, chunk);
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

/** A full disk took a part of a line: without it the next one, once there is room, stands on a line of its own. */
const takeBack = (fd: number, written: Uint8Array): void => {
  const torn = written.length - (written.lastIndexOf(0x0a) + 1);
  if (torn === 0) return;
  try {
    ftruncateSync(fd, fstatSync(fd).size - torn);
  } catch {
    // A disk that is read-only now keeps it.
  }
};
