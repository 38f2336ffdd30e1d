import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import type { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

const gzipMagic = Buffer.from([0x1f, 0x8b]);
const zstdMagic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);
/** A frame that decoders skip (RFC 8878, section 3.1.2); zstd:chunked and parallel compressors write some. */
const isZstd = (head: Buffer): boolean =>
  head.equals(zstdMagic) || (head.readUInt32LE() & 0xff_ff_ff_f0) >>> 0 === 0x18_4d_2a_50;
const CHUNK = 256 << 10;

/** The content of a layer blob: gzip and zstd are known by their first bytes, since media types are often wrong. */
export async function* decompressed(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const head = Buffer.alloc(4);
  {
    await using file = await open(path);
    await file.read(head, 0, 4, 0);
  }
  const source = createReadStream(path, { highWaterMark: CHUNK });
  const codec: Transform | undefined = head.subarray(0, 2).equals(gzipMagic)
    ? createGunzip({ chunkSize: CHUNK })
    : isZstd(head)
      ? createZstdDecompress({ chunkSize: CHUNK })
      : undefined;
  if (codec === undefined) {
    for await (const chunk of source) {
      signal.throwIfAborted();
      yield chunk as Buffer;
    }
    return;
  }
  // An error of the source destroys the codec with it, so the loop below throws it.
  const flow = pipeline(source, codec, { signal });
  flow.catch(() => {});
  try {
    for await (const chunk of codec) yield chunk as Buffer;
  } catch (cause) {
    signal.throwIfAborted();
    throw new RuntimeError("failed-precondition", `a layer cannot be decompressed: ${String(cause)}`, {
      cause,
    });
  }
}
