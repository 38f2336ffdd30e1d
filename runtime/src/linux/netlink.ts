import { endianness, constants as os } from "node:os";

const RTM_NEWADDR = 20;
const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
const NLM_F_CREATE = 0x400;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const AF_INET = 2;
const AF_INET6 = 10;

const little = endianness() === "LE";
const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  if (little) bytes.writeUInt16LE(value);
  else bytes.writeUInt16BE(value);
  return bytes;
};
const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  if (little) bytes.writeUInt32LE(value);
  else bytes.writeUInt32BE(value);
  return bytes;
};
const readInt = (bytes: Buffer, at: number): number =>
  little ? bytes.readInt32LE(at) : bytes.readInt32BE(at);
const readShort = (bytes: Buffer, at: number): number =>
  little ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at);

/** The request that adds an address to the link with this index (rtnetlink(7)); 4 or 16 bytes say the family. */
export const newAddress = (index: number, address: Uint8Array, prefix: number): Buffer => {
  const attribute = (type: number) => Buffer.concat([u16(4 + address.length), u16(type), address]);
  const family = address.length === 4 ? AF_INET : AF_INET6;
  const body = Buffer.concat([
    Buffer.from([family, prefix, 0, 0]),
    u32(index),
    attribute(IFA_LOCAL),
    attribute(IFA_ADDRESS),
  ]);
  const flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
  return Buffer.concat([u32(16 + body.length), u16(RTM_NEWADDR), u16(flags), u32(1), u32(0), body]);
};

/** The errno in the kernel's acknowledgement (netlink(7)); 0 when it did what was asked. */
export const acknowledged = (reply: Buffer): number =>
  reply.length < 20 || readShort(reply, 4) !== NLMSG_ERROR ? os.errno.EPROTO : Math.abs(readInt(reply, 16));
