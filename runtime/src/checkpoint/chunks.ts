import type { FileHandle } from "node:fs/promises";

const chunkSize = 1 << 20;

/**
 * The first `size` bytes of a file, or as many as there are, in pieces. By hand, since a stream on a handle that it
 * shall not close does not always end.
 */
export async function* chunksOf(
  file: FileHandle,
  size: number,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void> {
  for (let done = 0; done < size; ) {
    signal.throwIfAborted();
    // A new one each time: a stream may still hold the last.
    const buffer = Buffer.allocUnsafe(Math.min(chunkSize, size - done));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, done);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    done += bytesRead;
  }
}
