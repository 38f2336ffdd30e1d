/**
 * SPDY/3.1 framing (draft-mbelshe-httpbis-spdy-00, section 2.2 and 2.6): what kubectl, kubelet and crictl speak
 * on an upgraded connection. Pure; header blocks stay compressed here.
 */

/** Control frame types. */
const types = {
  synStream: 1,
  synReply: 2,
  rstStream: 3,
  settings: 4,
  ping: 6,
  goAway: 7,
  headers: 8,
  windowUpdate: 9,
} as const;

const version = 3;
const frameHeader = 8;

export const flagFin = 1;

/** RST_STREAM status codes that we send. */
export const rst = {
  protocolError: 1,
  invalidStream: 2,
  refusedStream: 3,
  cancel: 5,
  internalError: 6,
} as const;

export type Frame =
  | { type: "data"; stream: number; fin: boolean; data: Buffer }
  | { type: "synStream"; stream: number; fin: boolean; headers: Buffer }
  | { type: "synReply"; stream: number; fin: boolean; headers: Buffer }
  | { type: "headers"; stream: number; fin: boolean; headers: Buffer }
  | { type: "rstStream"; stream: number; status: number }
  | { type: "ping"; id: number }
  | { type: "goAway" }
  /** SETTINGS, WINDOW_UPDATE and unknown control frames: nothing to do. The peers run without flow control. */
  | { type: "ignored" };

/** Bytes of the whole frame that starts `bytes`, or undefined while its header is not complete. */
export const frameSize = (bytes: Buffer): number | undefined =>
  bytes.length < frameHeader ? undefined : frameHeader + bytes.readUIntBE(5, 3);

/**
 * Cuts what comes into whole frames. However small the pieces are, each byte is copied once. Throws at the header of a
 * frame of more than `limit` bytes.
 */
export function frameCutter(limit: number): (chunk: Buffer) => Generator<Buffer> {
  const head = Buffer.alloc(frameHeader);
  let frame = head;
  let filled = 0;
  return function* (chunk) {
    for (let at = 0; at < chunk.length; ) {
      const taken = chunk.copy(frame, filled, at);
      at += taken;
      filled += taken;
      if (filled < frame.length) return;
      if (frame === head) {
        const size = frameSize(head) ?? 0;
        if (size > limit) throw new Error(`SPDY frame of ${size} bytes`);
        frame = Buffer.allocUnsafe(size);
        head.copy(frame);
        if (filled < size) continue;
      }
      const whole = frame;
      [frame, filled] = [head, 0];
      yield whole;
    }
  };
}

/** Decodes one whole frame. Throws when it is shorter than its type demands. */
export function decodeFrame(frame: Buffer): Frame {
  const word = frame.readUInt32BE(0);
  const flags = frame.readUInt8(4);
  const fin = (flags & flagFin) !== 0;
  const body = frame.subarray(frameHeader);
  if (word < 0x8000_0000) return { type: "data", stream: word, fin, data: body };
  if (((word >>> 16) & 0x7fff) !== version)
    throw new Error(`SPDY version ${(word >>> 16) & 0x7fff}, expected 3`);
  const stream = () => body.readUInt32BE(0) & 0x7fff_ffff;
  switch (word & 0xffff) {
    case types.synStream:
      return { type: "synStream", stream: stream(), fin, headers: need(body, 10) };
    case types.synReply:
      return { type: "synReply", stream: stream(), fin, headers: need(body, 4) };
    case types.headers:
      return { type: "headers", stream: stream(), fin, headers: need(body, 4) };
    case types.rstStream:
      return { type: "rstStream", stream: stream(), status: body.readUInt32BE(4) };
    case types.ping:
      return { type: "ping", id: body.readUInt32BE(0) };
    case types.goAway:
      return { type: "goAway" };
    default:
      return { type: "ignored" };
  }
}

const need = (body: Buffer, offset: number): Buffer => {
  if (body.length < offset)
    throw new Error(`SPDY frame of ${body.length} bytes, expected at least ${offset}`);
  return body.subarray(offset);
};

function control(type: number, flags: number, body: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(frameHeader + body.length);
  frame.writeUInt32BE((0x8000_0000 | (version << 16) | type) >>> 0, 0);
  frame.writeUInt32BE(((flags << 24) | body.length) >>> 0, 4);
  body.copy(frame, frameHeader);
  return frame;
}

const words = (...values: number[]): Buffer => {
  const body = Buffer.allocUnsafe(values.length * 4);
  values.forEach((value, index) => {
    body.writeUInt32BE(value >>> 0, index * 4);
  });
  return body;
};

/** Header of a data frame; the payload follows as it is, uncopied. */
export function dataHeader(stream: number, length: number, fin: boolean): Buffer {
  return words(stream, ((fin ? flagFin << 24 : 0) | length) >>> 0);
}

export const synReply = (stream: number, headers: Buffer): Buffer =>
  control(types.synReply, 0, Buffer.concat([words(stream), headers]));

/** Only tests open streams; a server never does. */
export const synStream = (stream: number, headers: Buffer): Buffer =>
  control(types.synStream, 0, Buffer.concat([words(stream, 0), Buffer.from([0, 0]), headers]));

export const rstStream = (stream: number, status: number): Buffer =>
  control(types.rstStream, 0, words(stream, status));

export const ping = (id: number): Buffer => control(types.ping, 0, words(id));

export const goAway = (lastStream: number): Buffer => control(types.goAway, 0, words(lastStream, 0));
