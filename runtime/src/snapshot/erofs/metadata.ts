import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import {
  BLOCK,
  chunkFormat,
  directoryBlock,
  directoryBlocks,
  INODE_SIZE,
  inode,
  Layout,
  NO_BLOCK,
  SLOT,
  superblock,
  xattrBody,
} from "./format.ts";
import { type Node, tooLarge } from "./node.ts";
import type { Spool } from "./spool.ts";

/** A node and its place among the inodes. */
type Placed = {
  node: Node;
  parent: Placed | undefined;
  number: number;
  links: number;
  /** Bytes from the beginning of the inodes. */
  at: number;
  xattrs: Buffer;
  layout: number;
  /** Sorted names and the blocks they fill, of a directory. */
  names: string[];
  blocks: { from: number; to: number; bytes: number }[];
  /** First block of what is not beside the inode. */
  block: number;
};

/** Not 0, which would be an inode number that means "none" to readdir(3). */
const FIRST = SLOT * 2;

/** Writes directories, symbolic links and inodes behind the data that is there, and ends the image. */
export const writeMetadata = (root: Node, spool: Spool): { bytes: number; digest: string } => {
  const byNode = new Map<Node, Placed>();
  const order = place(root, byNode);
  spool.align(BLOCK);
  for (const placed of order) {
    placed.block = Math.floor(spool.position() / BLOCK);
    writeOutside(placed, byNode, spool);
  }
  spool.align(BLOCK);
  const start = spool.position();
  const zeros = (until: number) => spool.zeros(start + until - spool.position());
  for (const placed of order) {
    zeros(placed.at);
    spool.append(inode(fieldsOf(placed)));
    spool.append(placed.xattrs);
    const { content } = placed.node;
    if (content.is === "chunks") spool.append(chunkMap(placed.node.size, content.bits, content.blocks));
    else if (placed.layout === Layout.inline) spool.append(inlineOf(placed, byNode));
  }
  spool.align(BLOCK);
  return spool.finish(
    superblock({
      root: FIRST / SLOT,
      inodes: order.length,
      blocks: blockNumber(spool.position()),
      metaBlock: blockNumber(start),
      hasChunks: order.some(({ layout }) => layout === Layout.chunks),
    }),
  );
};

const blockNumber = (position: number): number => {
  const block = position / BLOCK;
  if (block >= NO_BLOCK) throw new RuntimeError("resource-exhausted", "Cannot write layer: more than 16 TiB");
  return block;
};

/** Gives every node its place: the root first, for its number has but 16 bits. */
const place = (root: Node, byNode: Map<Node, Placed>): Placed[] => {
  const order: Placed[] = [];
  let at = FIRST;
  const todo: { node: Node; parent: Placed | undefined }[] = [{ node: root, parent: undefined }];
  for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
    const { node, parent } = next;
    const known = byNode.get(node);
    if (known !== undefined) {
      known.links++;
      continue;
    }
    const xattrs = xattrBody(node.xattrs);
    if (xattrs === undefined) throw tooLarge();
    const placed: Placed = {
      ...{ node, parent, number: order.length + 1, links: 1, at: 0, xattrs, layout: Layout.plain },
      ...{ names: [], blocks: [], block: 0 },
    };
    at = placeOne(placed, at);
    order.push(placed);
    byNode.set(node, placed);
    if (node.content.is !== "directory") continue;
    if (parent !== undefined) parent.links++;
    placed.links = 2;
    for (const child of node.content.children.values()) todo.push({ node: child, parent: placed });
  }
  return order;
};

/** Where the inode goes when `at` is free. Returns what is free then. */
const placeOne = (placed: Placed, at: number): number => {
  const { node, xattrs } = placed;
  const head = INODE_SIZE + xattrs.length;
  let tail = 0;
  if (node.content.is === "chunks") {
    placed.layout = Layout.chunks;
    placed.at = at;
    return slotted(at + head + 4 * chunkCount(node.size, node.content.bits));
  }
  if (node.content.is === "symlink") tail = node.size = node.content.target.length;
  else if (node.content.is === "directory") {
    placed.names = [".", "..", ...node.content.children.keys()].sort(byBytes);
    placed.blocks = directoryBlocks(placed.names);
    tail = placed.blocks.at(-1)!.bytes;
    node.size = (placed.blocks.length - 1) * BLOCK + tail;
  }
  placed.at = at;
  // What is kept beside the inode must not cross a block.
  if (tail === 0 || head + tail > BLOCK) return slotted(at + head);
  placed.layout = Layout.inline;
  if (((at + head) % BLOCK) + tail > BLOCK) placed.at = Math.ceil(at / BLOCK) * BLOCK;
  return slotted(placed.at + head + tail);
};

const slotted = (at: number): number => Math.ceil(at / SLOT) * SLOT;
const byBytes = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
const chunkCount = (size: number, bits: number): number => Math.ceil(size / 2 ** bits);

/** Blocks of a directory or symbolic link that are not beside the inode. */
const writeOutside = (placed: Placed, byNode: Map<Node, Placed>, spool: Spool): void => {
  const { node, layout } = placed;
  if (node.content.is === "symlink" && layout === Layout.plain) {
    spool.append(Buffer.from(node.content.target, "latin1"));
    spool.align(BLOCK);
  }
  if (node.content.is !== "directory") return;
  const outside = layout === Layout.inline ? placed.blocks.slice(0, -1) : placed.blocks;
  for (const block of outside) {
    spool.append(directoryBlock(entriesOf(placed, block, byNode), block.bytes));
    spool.align(BLOCK);
  }
};

const inlineOf = (placed: Placed, byNode: Map<Node, Placed>): Buffer => {
  const { content } = placed.node;
  if (content.is === "symlink") return Buffer.from(content.target, "latin1");
  const last = placed.blocks.at(-1)!;
  return directoryBlock(entriesOf(placed, last, byNode), last.bytes);
};

const entriesOf = (placed: Placed, block: { from: number; to: number }, byNode: Map<Node, Placed>) => {
  const { content } = placed.node;
  if (content.is !== "directory") return [];
  return placed.names.slice(block.from, block.to).map((name) => {
    const target =
      name === "."
        ? placed
        : name === ".."
          ? (placed.parent ?? placed)
          : byNode.get(content.children.get(name)!)!;
    return { name, nid: target.at / SLOT, mode: target.node.mode };
  });
};

const fieldsOf = ({ node, layout, xattrs, number, links, block }: Placed) => {
  const { content } = node;
  const union =
    content.is === "data"
      ? content.block
      : content.is === "special"
        ? content.device
        : content.is === "chunks"
          ? chunkFormat(content.bits)
          : block;
  const { mode, size, uid, gid, mtime } = node;
  return { layout, xattrSize: xattrs.length, mode, size, union, number, uid, gid, mtime, links };
};

const chunkMap = (size: number, bits: number, blocks: ReadonlyMap<number, number>): Buffer => {
  const map = Buffer.alloc(4 * chunkCount(size, bits), 0xff);
  for (const [n, block] of blocks) map.writeUInt32LE(block, n * 4);
  return map;
};
