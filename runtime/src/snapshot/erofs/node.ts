import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Attributes } from "../layer-tree.ts";

/** A file of an image in the making, under one name or several. Metadata is in memory, data is in the image. */
export type Node = {
  /** Type and permission bits. */
  mode: number;
  uid: number;
  gid: number;
  mtime: bigint;
  /** Values are byte strings: kept until the end, so they are the heap's, which has a bound. */
  xattrs: ReadonlyMap<string, string>;
  size: number;
  content: Content;
};

export type Content =
  | { is: "directory"; children: Map<string, Node> }
  | { is: "symlink"; target: string }
  | { is: "special"; device: number }
  | { is: "data"; block: number }
  /** Chunks of `1 << bits` bytes; one that is not listed is a hole. */
  | { is: "chunks"; bits: number; blocks: Map<number, number> };

export const typeBits = {
  fifo: 0o010000,
  "character-device": 0o020000,
  directory: 0o040000,
  "block-device": 0o060000,
  file: 0o100000,
  symlink: 0o120000,
} as const;

const NONE: ReadonlyMap<string, string> = new Map();

export const nodeOf = (type: keyof typeof typeBits, content: Content, size = 0): Node => ({
  mode: typeBits[type] | (type === "directory" ? 0o755 : 0),
  uid: 0,
  gid: 0,
  mtime: 0n,
  xattrs: NONE,
  size,
  content,
});

/** What the inodes of EROFS have room for; ext4 and xfs take no more of one attribute either. */
const XATTRS_MAX = 0xffff;

export const dressNode = (node: Node, { mode, uid, gid, mtime, xattrs }: Attributes): void => {
  node.mode = (node.mode & 0o170000) | (mode & 0o7777);
  node.uid = uid;
  node.gid = gid;
  node.mtime = mtime;
  node.xattrs = withXattrs(node.xattrs, xattrs);
};

/** Those that come are measured at once: the next entry may bring as much again. */
const withXattrs = (before: Node["xattrs"], more: Attributes["xattrs"]): Node["xattrs"] => {
  if (more.size === 0) return before;
  const xattrs = new Map(before);
  for (const [name, value] of more) {
    if (value.length > XATTRS_MAX) throw tooLarge();
    xattrs.set(name, Buffer.from(value.buffer, value.byteOffset, value.length).toString("latin1"));
  }
  let sum = 0;
  for (const [name, value] of xattrs) sum += name.length + value.length;
  if (sum > XATTRS_MAX) throw tooLarge();
  return xattrs;
};

export const tooLarge = () =>
  new RuntimeError("invalid-argument", "Cannot unpack layer: a file's extended attributes are too large");
