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

/**
 * A decoder that takes the bytes as the socket cuts them and returns the frames that are complete. However small the
 * pieces are, each byte is copied once.
 */
export function frameDecoder(limit = maxData): (chunk: Uint8Array) => (Frame | Oversized)[] {
  const header = new Uint8Array(headerLength);
  const view = new DataView(header.buffer);
  /** Bytes that are there of the header, or of the frame whose header is known. */
  let filled = 0;
  let frame: Frame | undefined;
  /** Bytes of an oversized frame still to be thrown away. */
  let skip = 0;
  return (chunk) => {
    const frames: (Frame | Oversized)[] = [];
    for (let at = 0; at < chunk.length; ) {
      if (skip > 0) {
        const gone = Math.min(skip, chunk.length - at);
        skip -= gone;
        at += gone;
        continue;
      }
      const target = frame?.data ?? header;
      const part = chunk.subarray(at, at + target.length - filled);
      target.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled < target.length) break;
      filled = 0;
      if (frame === undefined) {
        const length = view.getUint32(0);
        const named = { streamId: view.getUint32(4), type: view.getUint8(8) };
        if (length > limit) {
          frames.push({ ...named, oversized: length });
          skip = length;
          continue;
        }
        frame = { ...named, flags: view.getUint8(9), data: new Uint8Array(length) };
        if (length > 0) continue;
      }
      frames.push(frame);
      frame = undefined;
    }
    return frames;
  };
}
