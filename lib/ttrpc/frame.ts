/**
 * Frames of ttrpc (github.com/containerd/ttrpc, PROTOCOL.md): a header of ten bytes, big-endian (length of the
 * data, stream id, type, flags), then the data. Pure: bytes in, frames out.
 */
export type Frame = { streamId: number; type: number; flags: number; data: Uint8Array };

/** A frame whose data was longer than {@link maxData}: skipped, to be answered with ResourceExhausted. */
export type Oversized = { streamId: number; type: number; oversized: number };

export const MessageType = { request: 1, response: 2, data: 3 } as const;
export const MessageFlag = { remoteClosed: 1, remoteOpen: 2, noData: 4 } as const;

export const headerLength = 10;
/** What a peer accepts in one frame. */
export const maxData = 4 << 20;

/** The bytes of one frame. */
export function encodeFrame(frame: Frame): Uint8Array {
  const bytes = new Uint8Array(headerLength + frame.data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, frame.data.length);
  view.setUint32(4, frame.streamId);
  view.setUint8(8, frame.type);
  view.setUint8(9, frame.flags);
  bytes.set(frame.data, headerLength);
  return bytes;
}

/** A decoder that takes the bytes as the socket cuts them and returns the frames that are complete. */
export function frameDecoder(limit = maxData): (chunk: Uint8Array) => (Frame | Oversized)[] {
  let pending: Uint8Array[] = [];
  let length = 0;
  /** Bytes of an oversized frame still to be thrown away. */
  let skip = 0;

  const take = (count: number): Uint8Array => {
    const out = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      const head = pending[0] as Uint8Array;
      const part = head.subarray(0, count - filled);
      out.set(part, filled);
      filled += part.length;
      if (part.length === head.length) pending.shift();
      else pending[0] = head.subarray(part.length);
    }
    length -= count;
    return out;
  };

  let header: { dataLength: number; streamId: number; type: number; flags: number } | undefined;
  return (chunk) => {
    const frames: (Frame | Oversized)[] = [];
    let rest = chunk;
    for (;;) {
      if (skip > 0) {
        const gone = Math.min(skip, rest.length);
        skip -= gone;
        rest = rest.subarray(gone);
        if (skip > 0) return frames;
      }
      if (rest.length > 0) {
        pending.push(rest);
        length += rest.length;
        rest = rest.subarray(rest.length);
      }
      if (!header) {
        if (length < headerLength) return frames;
        const bytes = take(headerLength);
        const view = new DataView(bytes.buffer);
        header = {
          dataLength: view.getUint32(0),
          streamId: view.getUint32(4),
          type: view.getUint8(8),
          flags: view.getUint8(9),
        };
      }
      if (header.dataLength > limit) {
        frames.push({ streamId: header.streamId, type: header.type, oversized: header.dataLength });
        skip = header.dataLength;
        header = undefined;
        // What already came of it is in `pending`: run it through the skip above.
        rest = length > 0 ? take(length) : rest;
        pending = [];
        continue;
      }
      if (length < header.dataLength) return frames;
      const { dataLength, ...kept } = header;
      header = undefined;
      frames.push({ ...kept, data: take(dataLength) });
    }
  };
}
