import { closeSync, lstatSync, openSync, readlinkSync, readSync } from "node:fs";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { readXattrs } from "../../linux/file-attributes.ts";
import type { Attributes, LayerTree } from "../layer-tree.ts";
import { BLOCK, deviceNumber, NO_BLOCK } from "./format.ts";
import { writeMetadata } from "./metadata.ts";
import { dressNode, type Node, nodeOf } from "./node.ts";
import { createSpool } from "./spool.ts";

const OPAQUE: [string, string] = ["trusted.overlay.opaque", "y"];
/** A sparse file has no more chunks than this; they grow with it. */
const CHUNKS_MAX = 65_536;
const SPARSE_MAX = 2 ** 44;
/** Bytes of extended attributes of one layer, which wait in memory for its end. */
const ATTRIBUTES_MAX = 128 * 1024 * 1024;

/**
 * A layer as one EROFS image at `path`. Data goes into it as it comes, each file from a block's beginning; what is
 * known of the files stays in memory and is written behind the data. Nothing a tar says becomes a path of the host.
 */
export const createErofsTree = (path: string): LayerTree => {
  const spool = createSpool(path);
  const root = nodeOf("directory", { is: "directory", children: new Map() });
  let file: { node: Node; written: number; chunk: number } | undefined;

  const find = (name: string): Node | undefined => {
    if (name === "") return root;
    let node: Node | undefined = root;
    for (const part of name.split("/")) {
      if (node?.content.is !== "directory") return undefined;
      node = node.content.children.get(part);
    }
    return node;
  };
  const get = (name: string): Node => {
    const node = find(name);
    if (node === undefined) throw new RuntimeError("internal", `Cannot find "${name}" in the layer`);
    return node;
  };
  const slot = (name: string): { children: Map<string, Node>; base: string } => {
    const slash = name.lastIndexOf("/");
    const { content } = get(slash < 0 ? "" : name.slice(0, slash));
    if (content.is !== "directory") throw new RuntimeError("internal", `Cannot put "${name}" into the layer`);
    return { children: content.children, base: name.slice(slash + 1) };
  };
  const add = (name: string, node: Node): Node => {
    const { children, base } = slot(name);
    children.set(base, node);
    return node;
  };

  let attributeBytes = 0;
  const dress = (node: Node, attributes: Attributes) => {
    dressNode(node, attributes);
    for (const [name, value] of attributes.xattrs) attributeBytes += name.length + value.length;
    if (attributeBytes > ATTRIBUTES_MAX)
      throw new RuntimeError(
        "resource-exhausted",
        `Cannot unpack layer: more than ${ATTRIBUTES_MAX} bytes of extended attributes`,
      );
  };

  const here = () => {
    const block = spool.position() / BLOCK;
    if (block >= NO_BLOCK)
      throw new RuntimeError("resource-exhausted", "Cannot write layer: more than 16 TiB");
    return block;
  };

  const endChunk = () => {
    const content = file?.node.content;
    if (content?.is === "chunks" && file!.chunk >= 0) {
      spool.zeros((file!.chunk + 1) * 2 ** content.bits - file!.written);
      file!.chunk = -1;
    }
  };

  const writeSparse = (chunk: Uint8Array, offset: number) => {
    const { content } = file!.node;
    if (content.is !== "chunks") return;
    const size = 2 ** content.bits;
    for (let at = 0; at < chunk.length; ) {
      const n = Math.floor((offset + at) / size);
      if (n !== file!.chunk) {
        endChunk();
        content.blocks.set(n, here());
        [file!.chunk, file!.written] = [n, n * size];
      }
      spool.zeros(offset + at - file!.written);
      const part = chunk.subarray(at, at + (n + 1) * size - (offset + at));
      spool.append(part);
      at += part.length;
      file!.written = offset + at;
    }
  };

  const toChunks = (node: Node) => {
    if (node.size === 0) return;
    if (node.size > SPARSE_MAX)
      throw new RuntimeError("resource-exhausted", "Cannot unpack layer: a file is larger than 16 TiB");
    let bits = Math.log2(BLOCK);
    while (node.size / 2 ** bits > CHUNKS_MAX) bits++;
    node.content = { is: "chunks", bits, blocks: new Map() };
  };

  /** Copies a file of the host's, one of a layer below. */
  const copyOf = (from: Uint8Array): Node => {
    const source = from as Buffer;
    const stat = lstatSync(source, { bigint: true });
    const mode = Number(stat.mode);
    const node = nodeOf("file", { is: "data", block: NO_BLOCK }, Number(stat.size));
    node.mode = mode;
    if (stat.isSymbolicLink()) node.content = { is: "symlink", target: readlinkSync(source, "latin1") };
    else if (stat.isFile()) {
      const fd = openSync(source, "r");
      try {
        node.content = { is: "data", block: here() };
        const buffer = Buffer.allocUnsafe(BLOCK * 16);
        for (let n = readSync(fd, buffer); n > 0; n = readSync(fd, buffer))
          spool.append(buffer.subarray(0, n));
        spool.align(BLOCK);
      } finally {
        closeSync(fd);
      }
    } else node.content = { is: "special", device: Number(stat.rdev) };
    dress(node, {
      mode,
      uid: Number(stat.uid),
      gid: Number(stat.gid),
      mtime: stat.mtimeNs,
      xattrs: readXattrs(source),
    });
    return node;
  };

  return {
    kindOf(name) {
      const node = find(name);
      if (node === undefined) return undefined;
      const { is } = node.content;
      if (is === "directory" || is === "symlink") return is;
      const isWhiteout = (node.mode & 0o170000) === 0o020000 && is === "special" && node.content.device === 0;
      return isWhiteout ? "whiteout" : "other";
    },
    readlink(name) {
      const { content } = get(name);
      return content.is === "symlink" ? content.target : "";
    },
    mkdir: (name) => void add(name, nodeOf("directory", { is: "directory", children: new Map() })),
    setOpaque(name) {
      const node = get(name);
      node.xattrs = new Map([...node.xattrs, OPAQUE]);
    },
    whiteout: (name) => void add(name, nodeOf("character-device", { is: "special", device: 0 })),
    symlink: (name, target, attributes) =>
      dress(add(name, nodeOf("symlink", { is: "symlink", target })), { ...attributes, mode: 0o777 }),
    special: (name, { type, major, minor }, attributes) => {
      const device = type === "fifo" ? 0 : deviceNumber(major, minor);
      dress(add(name, nodeOf(type, { is: "special", device })), attributes);
    },
    link: (name, to) => void add(to, get(name)),
    remove(name) {
      const { children, base } = slot(name);
      children.delete(base);
    },
    dress: (name, attributes) => dress(get(name), attributes),

    open(name, size, isSparse) {
      const { children, base } = slot(name);
      if (children.has(base)) return false;
      const node = nodeOf("file", { is: "data", block: size === 0 ? NO_BLOCK : here() }, size);
      if (isSparse) toChunks(node);
      children.set(base, node);
      file = { node, written: 0, chunk: -1 };
      return true;
    },
    write(chunk, offset) {
      if (file!.node.content.is === "chunks") writeSparse(chunk, offset);
      else spool.append(chunk);
    },
    close(attributes) {
      const { node } = file!;
      endChunk();
      spool.align(BLOCK);
      dress(node, attributes);
      file = undefined;
    },

    copiesUp: true,
    linkBelow(name, source, from) {
      const node = add(name, copyOf(from));
      const slash = source.lastIndexOf("/");
      const above = find(slash < 0 ? "" : source.slice(0, slash));
      if (above?.content.is === "directory" && find(source) === undefined)
        above.content.children.set(source.slice(slash + 1), node);
    },

    seal() {
      const { bytes, digest } = writeMetadata(root, spool);
      return { bytes, inodes: 1, digest };
    },
    abandon: () => spool.close(),
  };
};
