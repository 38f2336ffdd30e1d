import type { Attributes } from "../layer-tree.ts";

/** A file of an image in the making, under one name or several. Metadata is in memory, data is in the image. */
export type Node = {
  /** Type and permission bits. */
  mode: number;
  uid: number;
  gid: number;
  mtime: bigint;
  xattrs: ReadonlyMap<string, Uint8Array>;
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

const NONE: ReadonlyMap<string, Uint8Array> = new Map();

export const nodeOf = (type: keyof typeof typeBits, content: Content, size = 0): Node => ({
  mode: typeBits[type] | (type === "directory" ? 0o755 : 0),
  uid: 0,
  gid: 0,
  mtime: 0n,
  xattrs: NONE,
  size,
  content,
});

export const dressNode = (node: Node, { mode, uid, gid, mtime, xattrs }: Attributes): void => {
  node.mode = (node.mode & 0o170000) | (mode & 0o7777);
  node.uid = uid;
  node.gid = gid;
  node.mtime = mtime;
  node.xattrs = xattrs.size === 0 && node.xattrs.size === 0 ? NONE : new Map([...node.xattrs, ...xattrs]);
};
