import { closeSync, mkdirSync, openSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { LineCutter, type LogStream, timestamp } from "./cri-log.ts";

/**
 * A CRI log whose writes are done when they return: for output that is consumed from its pipe only afterwards,
 * so that a kill -9 in between repeats a line instead of losing one. Each piece stands for itself; what has no
 * newline at its end is a partial line.
 */
export const openSyncLog = (path: string) => {
  let file = open(path);
  const cutters = { stdout: new LineCutter("stdout"), stderr: new LineCutter("stderr") };
  return {
    write: (stream: LogStream, chunk: Uint8Array): void => {
      const time = timestamp(performance.timeOrigin + performance.now());
      const cutter = cutters[stream];
      const piece = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
      const lines = Buffer.concat([cutter.cut(piece, time), cutter.flush(time)]);
      for (let written = 0; written < lines.length; ) written += writeSync(file, lines, written);
    },
    /** The new file exists when this returns; the old one gets nothing more. */
    reopen: (): void => {
      const next = open(path);
      closeSync(file);
      file = next;
    },
    close: (): void => {
      if (file >= 0) closeSync(file);
      file = -1;
    },
  };
};

const open = (path: string): number => {
  mkdirSync(dirname(path), { recursive: true });
  return openSync(path, "a", 0o640);
};
