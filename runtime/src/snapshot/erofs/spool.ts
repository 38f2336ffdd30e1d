import { createHash } from "node:crypto";
import { closeSync, openSync, writeSync } from "node:fs";
import { BLOCK } from "./format.ts";

const BUFFER = 256 * 1024;
const ZEROS = Buffer.alloc(BLOCK);

/**
 * Writes an image from its second block to its end, then its first. The digest is of the bytes in that order, so that
 * it is known without reading anything again.
 */
export const createSpool = (path: string) => {
  const fd = openSync(path, "wx", 0o600);
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafeSlow(BUFFER);
  let filled = 0;
  let written = BLOCK;
  let isOpen = true;

  const put = (bytes: Uint8Array, at: number) => {
    for (let done = 0; done < bytes.length; )
      done += writeSync(fd, bytes, done, bytes.length - done, at + done);
  };
  const flush = () => {
    const part = buffer.subarray(0, filled);
    hash.update(part);
    put(part, written);
    written += filled;
    filled = 0;
  };

  return {
    /** Where the next byte goes. */
    position: () => written + filled,
    append(bytes: Uint8Array) {
      for (let at = 0; at < bytes.length; ) {
        const part = bytes.subarray(at, at + BUFFER - filled);
        buffer.set(part, filled);
        filled += part.length;
        at += part.length;
        if (filled === BUFFER) flush();
      }
    },
    /** Zeros up to the next multiple of `step`. */
    align(step: number) {
      for (let rest = (step - (this.position() % step)) % step; rest > 0; ) {
        const part = ZEROS.subarray(0, Math.min(rest, BLOCK));
        this.append(part);
        rest -= part.length;
      }
    },
    zeros(count: number) {
      for (let rest = count; rest > 0; rest -= BLOCK) this.append(ZEROS.subarray(0, Math.min(rest, BLOCK)));
    },
    /** The first block ends it. */
    finish(first: Buffer): { bytes: number; digest: string } {
      this.align(BLOCK);
      flush();
      hash.update(first);
      put(first, 0);
      this.close();
      return { bytes: written, digest: `sha256:${hash.digest("hex")}` };
    },
    close() {
      if (isOpen) closeSync(fd);
      isOpen = false;
    },
  };
};

export type Spool = ReturnType<typeof createSpool>;
