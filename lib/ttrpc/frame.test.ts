import fc from "fast-check";
import { expect, test } from "vitest";
import { encodeFrame, type Frame, frameDecoder } from "./frame.ts";

const frames = fc.array(
  fc.record({
    streamId: fc.integer({ min: 0, max: 0xffffffff }),
    type: fc.integer({ min: 0, max: 255 }),
    flags: fc.integer({ min: 0, max: 255 }),
    data: fc.uint8Array({ maxLength: 64 }),
  }),
  { maxLength: 8 },
);

/** Cuts bytes at the given places, as a socket may. */
const cut = (bytes: Uint8Array, at: number[]): Uint8Array[] => {
  const places = [...new Set(at.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((from, index) => bytes.subarray(from, places[index] ?? bytes.length));
};

const plain = (frame: object) => ({
  ...frame,
  ...("data" in frame ? { data: [...(frame as Frame).data] } : {}),
});

test("a frame is its length, stream id, type and flags, big-endian, then the data", () => {
  expect([...encodeFrame({ streamId: 0x01020304, type: 1, flags: 2, data: new Uint8Array([9, 8]) })]).toEqual(
    [0, 0, 0, 2, 1, 2, 3, 4, 1, 2, 9, 8],
  );
});

test("frames come out as they went in, wherever the socket cuts the bytes", () => {
  fc.assert(
    fc.property(frames, fc.array(fc.nat(), { maxLength: 20 }), (list, places) => {
      const bytes = Buffer.concat(list.map(encodeFrame));
      const decode = frameDecoder();
      expect(cut(bytes, places).flatMap(decode).map(plain)).toEqual(list.map(plain));
    }),
  );
});

test("a frame over the limit is named and skipped, and those around it survive", () => {
  fc.assert(
    fc.property(frames, fc.array(fc.nat(), { maxLength: 20 }), (list, places) => {
      const bytes = Buffer.concat(list.map(encodeFrame));
      const decode = frameDecoder(16);
      const expected = list.map((frame) =>
        frame.data.length > 16
          ? { streamId: frame.streamId, type: frame.type, oversized: frame.data.length }
          : plain(frame),
      );
      expect(cut(bytes, places).flatMap(decode).map(plain)).toEqual(expected);
    }),
  );
});
