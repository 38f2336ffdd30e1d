import { createHash } from "node:crypto";
import { constants, deflateSync } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { dataHeader, decodeFrame, frameSize, synReply, synStream } from "./frame.ts";
import { decodePairs, dictionary, HeaderDeflater, HeaderInflater } from "./headers.ts";

test("The dictionary is the one of SPDY/3", () => {
  expect(dictionary.length).toBe(1423);
  expect(createHash("sha256").update(dictionary).digest("hex")).toBe(
    "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02",
  );
});

test("What the deflater writes, block after block, the inflater reads", async () => {
  const deflater = new HeaderDeflater();
  const inflater = new HeaderInflater();
  for (const headers of [
    new Map([["streamtype", "error"]]),
    new Map(),
    new Map([
      ["port", "80"],
      ["requestid", "7"],
    ]),
  ])
    expect(await inflater.decode(deflater.encode(headers))).toEqual(headers);
});

test("A header block that inflates beyond its bound is refused", async () => {
  const bomb = deflateSync(Buffer.alloc(10_000_000), { dictionary, finishFlush: constants.Z_SYNC_FLUSH });
  await expect(new HeaderInflater().decode(bomb)).rejects.toThrow("more than 65536 bytes");
});

test("A header block that is no zlib stream is refused", async () => {
  await expect(new HeaderInflater().decode(Buffer.from("nonsense"))).rejects.toThrow();
});

test("Frames decode to what was encoded", () => {
  expect(decodeFrame(synStream(5, Buffer.from("h")))).toEqual({
    type: "synStream",
    stream: 5,
    fin: false,
    headers: Buffer.from("h"),
  });
  expect(decodeFrame(synReply(5, Buffer.from("h")))).toMatchObject({ type: "synReply", stream: 5 });
  expect(decodeFrame(Buffer.concat([dataHeader(7, 2, true), Buffer.from("ab")]))).toEqual({
    type: "data",
    stream: 7,
    fin: true,
    data: Buffer.from("ab"),
  });
});

test("No bytes make the decoders do worse than throw", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 8, maxLength: 64 }), (bytes) => {
      const frame = Buffer.from(bytes);
      frame.writeUIntBE(frame.length - 8, 5, 3);
      expect(frameSize(frame)).toBe(frame.length);
      try {
        decodeFrame(frame);
        decodePairs(frame);
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
      }
    }),
  );
});
