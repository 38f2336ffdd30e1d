export type LogStream = "stdout" | "stderr";

/** Longest text of one line of the log; what is longer is written in parts (tag P). */
export const LINE_LIMIT = 16 * 1024;
const NEWLINE = 0x0a;

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
