import { createHash } from "node:crypto";
import { closeSync, openSync, readSync } from "node:fs";
import { BLOCK } from "./format.ts";

/** Digest of an image in the order in which it was written: from the second block to the end, then the first. */
export const digestOf = (path: string): string => {
  const fd = openSync(path, "r");
  try {
    const hash = createHash("sha256");
    const buffer = Buffer.allocUnsafeSlow(1 << 20);
    for (let at = BLOCK; ; ) {
      const length = readSync(fd, buffer, 0, buffer.length, at);
      if (length === 0) break;
      hash.update(buffer.subarray(0, length));
      at += length;
    }
    const first = readSync(fd, buffer, 0, BLOCK, 0);
    hash.update(buffer.subarray(0, first));
    return `sha256:${hash.digest("hex")}`;
  } finally {
    closeSync(fd);
  }
};
