import { constants } from "node:fs";
import { type FileHandle, mkdir, open } from "node:fs/promises";
import { dirname } from "node:path";
import { wallClock } from "@bulkhead/lib/std/wall-clock.ts";

const { O_WRONLY, O_APPEND, O_CREAT, O_NOFOLLOW } = constants;

export type LogStream = "stdout" | "stderr";

/** Longest text of one line of the log; what is longer is written in parts (tag P). */
export const LINE_LIMIT = 16 * 1024;
const NEWLINE = 0x0a;
/** From here on write() asks its caller to wait. */
const QUEUE_LIMIT = 256 * 1024;

let second = -1;
let prefix = "";

/** RFC3339Nano in UTC, with all nine digits: times of one container then sort as text. */
export const timestamp = (milliseconds: number): string => {
  const now = Math.floor(milliseconds / 1000);
  if (now !== second) {
    second = now;
    prefix = new Date(now * 1000).toISOString().slice(0, 20);
  }
  const nanos = Math.floor((milliseconds - now * 1000) * 1e6);
  return `${prefix}${String(nanos).padStart(9, "0")}Z`;
};

/** Pure part: cuts what a stream gives into lines of the log. Holds less than {@link LINE_LIMIT} bytes per stream. */
export class LineCutter {
  #stream: LogStream;
  #rest: Buffer = Buffer.alloc(0);

  constructor(stream: LogStream) {
    this.#stream = stream;
  }

  /** The lines that `chunk` completes, as they stand in the file. */
  cut(chunk: Buffer, time: string): Buffer {
    const out: Buffer[] = [];
    const head = { P: this.#head("P", time), F: this.#head("F", time) };
    const data = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    for (;;) {
      const end = data.indexOf(NEWLINE, at);
      const length = (end < 0 ? data.length : end) - at;
      if (length > LINE_LIMIT || (end < 0 && length === LINE_LIMIT)) {
        out.push(head.P, data.subarray(at, at + LINE_LIMIT), newline);
        at += LINE_LIMIT;
        continue;
      }
      if (end < 0) break;
      // With its newline.
      out.push(head.F, data.subarray(at, end + 1));
      at = end + 1;
    }
    // A copy: the caller may use its buffer again.
    this.#rest = Buffer.from(data.subarray(at));
    return Buffer.concat(out);
  }

  /** What is left when the stream ends: text without a newline is a part, whose end never came. */
  flush(time: string): Buffer {
    const rest = this.#rest;
    this.#rest = Buffer.alloc(0);
    return rest.length === 0 ? rest : Buffer.concat([this.#head("P", time), rest, newline]);
  }

  #head(tag: "P" | "F", time: string): Buffer {
    return Buffer.from(`${time} ${this.#stream} ${tag} `, "latin1");
  }
}

const newline = Buffer.from("\n");

/**
 * A container's log as kubelet reads it (Kubernetes CRI logging: `TIME STREAM P|F TEXT`). Keeps the file that it
 * opened: a rename changes nothing until {@link CriLog.reopen}. All that was given before reopen() is in the old
 * file, all after it in the new one.
 */
export class CriLog {
  #path: string;
  #file: FileHandle;
  #cutters = { stdout: new LineCutter("stdout"), stderr: new LineCutter("stderr") };
  #queue: Buffer[] = [];
  #queued = 0;
  #work: Promise<void> = Promise.resolve();
  #scheduled = false;
  #error: unknown;
  #closed = false;

  private constructor(path: string, file: FileHandle) {
    this.#path = path;
    this.#file = file;
  }

  static async open(path: string): Promise<CriLog> {
    await mkdir(dirname(path), { recursive: true });
    return new CriLog(path, await openLog(path));
  }

  /**
   * Takes a piece of output. Resolves at once while little is waiting for the disk, else when it has been written:
   * who awaits it never makes the log hold more than a few hundred KiB. Rejects when the log cannot be written.
   */
  async write(stream: LogStream, chunk: Uint8Array): Promise<void> {
    if (this.#closed) throw new Error(`Cannot write to log "${this.#path}": it is closed`);
    if (this.#error !== undefined) throw this.#error;
    const data = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.#enqueue(this.#cutters[stream].cut(data, now()));
    if (this.#queued < QUEUE_LIMIT) return;
    await this.#work;
    if (this.#error !== undefined) throw this.#error;
  }

  /** Returns after the new file exists and all earlier output is in the old one. */
  async reopen(): Promise<void> {
    if (this.#closed) throw new Error(`Cannot reopen log "${this.#path}": it is closed`);
    await this.#then(async () => {
      await this.#drain();
      const file = await openLog(this.#path);
      const old = this.#file;
      this.#file = file;
      this.#error = undefined;
      await old.close();
    });
  }

  /** Writes what is left, a last line without newline too. Again is no failure. */
  async close(): Promise<void> {
    if (this.#closed) return this.#work;
    this.#closed = true;
    for (const cutter of Object.values(this.#cutters)) this.#enqueue(cutter.flush(now()));
    await this.#then(async () => {
      try {
        await this.#drain();
      } finally {
        await this.#file.close();
      }
    });
    if (this.#error !== undefined) throw this.#error;
  }

  #enqueue(lines: Buffer): void {
    if (lines.length === 0) return;
    this.#queued += lines.length;
    this.#queue.push(lines);
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#then(() => this.#drain()).catch(() => {});
  }

  /** One after the other, whatever became of the one before. */
  #then(action: () => Promise<void>): Promise<void> {
    const done = this.#work.then(action);
    this.#work = done.catch(() => {});
    return done;
  }

  async #drain(): Promise<void> {
    this.#scheduled = false;
    while (this.#queue.length > 0) {
      const data = Buffer.concat(this.#queue.splice(0));
      try {
        await writeAll(this.#file, data);
      } catch (error) {
        // A full disk: kubelet may rotate the log away, and reopen() begins anew.
        this.#error = error;
      } finally {
        this.#queued -= data.length;
      }
    }
  }
}

const now = () => timestamp(wallClock());

/** Appending, never through a link in the last place: the path is in a directory that others can write to. */
const openLog = (path: string): Promise<FileHandle> =>
  open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW, 0o640);

const writeAll = async (file: FileHandle, data: Buffer): Promise<void> => {
  for (let at = 0; at < data.length; ) at += (await file.write(data, at)).bytesWritten;
};
