import { constants } from "node:os";
import { expect, test } from "vitest";
import { acknowledged, newAddress } from "./netlink.ts";

test("newAddress() is the message that rtnetlink takes", () => {
  // As `ip addr add 10.1.2.3/24` sends it, for link 7.
  expect(newAddress(7, Uint8Array.of(10, 1, 2, 3), 24).toString("hex")).toBe(
    ["28000000", "1400", "0504", "01000000", "00000000", "02180000", "07000000"].join("") +
      ["0800", "0200", "0a010203", "0800", "0100", "0a010203"].join(""),
  );
  const six = newAddress(1, new Uint8Array(16), 64);
  expect([six.length, six[16], six[17]]).toEqual([64, 10, 64]);
});

test("acknowledged() reads the kernel's errno, and takes nothing else for an answer", () => {
  const reply = Buffer.alloc(36);
  reply.writeUInt16LE(2, 4);
  expect(acknowledged(reply)).toBe(0);
  reply.writeInt32LE(-17, 16);
  expect(acknowledged(reply)).toBe(17);
  reply.writeUInt16LE(3, 4);
  expect(acknowledged(reply)).toBe(constants.errno.EPROTO);
  expect(acknowledged(Buffer.alloc(4))).toBe(constants.errno.EPROTO);
});
