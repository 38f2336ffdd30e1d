/*
 * The on-disk form of EROFS (Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h), as far as a layer
 * needs it: blocks of 4096 bytes, extended inodes, uncompressed data, chunks for sparse files.
 */

export const BLOCK = 4096;
export const MAGIC = 0xe0f5e1e2;
export const SUPER_OFFSET = 1024;
/** Inodes are numbered by their place: 32 bytes each. */
export const SLOT = 32;
export const INODE_SIZE = 64;
export const NO_BLOCK = 0xffffffff;

const FEATURE_COMPAT_MTIME = 0x2;
const FEATURE_INCOMPAT_CHUNKED_FILE = 0x4;

/** Where the data of an inode is. */
export const Layout = { plain: 0, inline: 2, chunks: 4 } as const;

export const S_IFMT = 0o170000;
/** Type bits of a mode → type of a directory entry. */
const FILE_TYPES: ReadonlyMap<number, number> = new Map([
  [0o100000, 1],
  [0o040000, 2],
  [0o020000, 3],
  [0o060000, 4],
  [0o010000, 5],
  [0o120000, 7],
]);

export const superblock = (of: {
  root: number;
  inodes: number;
  blocks: number;
  metaBlock: number;
  hasChunks: boolean;
}): Buffer => {
  const block = Buffer.alloc(BLOCK);
  const at = (offset: number) => SUPER_OFFSET + offset;
  block.writeUInt32LE(MAGIC, at(0));
  block.writeUInt32LE(FEATURE_COMPAT_MTIME, at(8));
  block.writeUInt8(Math.log2(BLOCK), at(12));
  block.writeUInt16LE(of.root, at(14));
  block.writeBigUInt64LE(BigInt(of.inodes), at(16));
  block.writeUInt32LE(of.blocks, at(36));
  block.writeUInt32LE(of.metaBlock, at(40));
  block.writeUInt32LE(of.hasChunks ? FEATURE_INCOMPAT_CHUNKED_FILE : 0, at(80));
  return block;
};

export type InodeFields = {
  layout: number;
  /** Bytes of extended attributes behind the inode. */
  xattrSize: number;
  mode: number;
  size: number;
  /** First block, device number or chunk format. */
  union: number;
  number: number;
  uid: number;
  gid: number;
  mtime: bigint;
  links: number;
};

export const inode = (fields: InodeFields): Buffer => {
  const bytes = Buffer.alloc(INODE_SIZE);
  bytes.writeUInt16LE(1 | (fields.layout << 1), 0);
  bytes.writeUInt16LE(fields.xattrSize === 0 ? 0 : (fields.xattrSize - 12) / 4 + 1, 2);
  bytes.writeUInt16LE(fields.mode, 4);
  bytes.writeBigUInt64LE(BigInt(fields.size), 8);
  bytes.writeUInt32LE(fields.union, 16);
  bytes.writeUInt32LE(fields.number, 20);
  bytes.writeUInt32LE(fields.uid, 24);
  bytes.writeUInt32LE(fields.gid, 28);
  const nanoseconds = ((fields.mtime % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  bytes.writeBigInt64LE((fields.mtime - nanoseconds) / 1_000_000_000n, 32);
  bytes.writeUInt32LE(Number(nanoseconds), 40);
  bytes.writeUInt32LE(fields.links, 44);
  return bytes;
};

/** As the kernel's new_encode_dev(). */
export const deviceNumber = (major: number, minor: number): number =>
  ((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)) >>> 0;

const PREFIXES: [prefix: string, index: number][] = [
  ["user.", 1],
  ["system.posix_acl_access", 2],
  ["system.posix_acl_default", 3],
  ["trusted.", 4],
  ["security.", 6],
];

/** The attributes (values are byte strings) as they stand behind an inode; none that EROFS has no name for. undefined when they are too many. */
export const xattrBody = (xattrs: ReadonlyMap<string, string>): Buffer | undefined => {
  const parts: Buffer[] = [];
  for (const [name, value] of xattrs) {
    const [prefix, index] = PREFIXES.find(([start]) => name.startsWith(start)) ?? [];
    if (prefix === undefined || index === undefined) continue;
    const rest = Buffer.from(name.slice(prefix.length));
    if (rest.length > 255 || value.length > 0xffff) return undefined;
    const entry = Buffer.alloc(Math.ceil((4 + rest.length + value.length) / 4) * 4);
    entry.writeUInt8(rest.length, 0);
    entry.writeUInt8(index, 1);
    entry.writeUInt16LE(value.length, 2);
    entry.set(rest, 4);
    entry.write(value, 4 + rest.length, "latin1");
    parts.push(entry);
  }
  if (parts.length === 0) return Buffer.alloc(0);
  const body = Buffer.concat([Buffer.alloc(12), ...parts]);
  return body.length > 0xffff ? undefined : body;
};

const DIRENT = 12;

/** Byte order, "." and ".." among the others: a name is found by halving. The lengths of the blocks they fill. */
export const directoryBlocks = (names: readonly string[]): { from: number; to: number; bytes: number }[] => {
  const blocks: { from: number; to: number; bytes: number }[] = [];
  let from = 0;
  let bytes = 0;
  for (const [n, name] of names.entries()) {
    const size = DIRENT + name.length;
    if (bytes + size > BLOCK) {
      blocks.push({ from, to: n, bytes });
      [from, bytes] = [n, 0];
    }
    bytes += size;
  }
  blocks.push({ from, to: names.length, bytes });
  return blocks;
};

/** One block of a directory: entries, then their names. `length` is what it fills up to. */
export const directoryBlock = (
  entries: readonly { name: string; nid: number; mode: number }[],
  length: number,
): Buffer => {
  const block = Buffer.alloc(length);
  let nameAt = entries.length * DIRENT;
  for (const [n, { name, nid, mode }] of entries.entries()) {
    block.writeBigUInt64LE(BigInt(nid), n * DIRENT);
    block.writeUInt16LE(nameAt, n * DIRENT + 8);
    block.writeUInt8(FILE_TYPES.get(mode & S_IFMT) ?? 0, n * DIRENT + 10);
    nameAt += block.write(name, nameAt, "latin1");
  }
  return block;
};

/** Format word of a file in chunks of `1 << bits` bytes. */
export const chunkFormat = (bits: number): number => bits - Math.log2(BLOCK);
