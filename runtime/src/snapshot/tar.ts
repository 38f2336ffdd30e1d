import {
  bounded,
  invalid,
  number,
  type Pax,
  paxNumber,
  paxRecords,
  paxText,
  paxTime,
  signed,
  text,
} from "./tar-field.ts";
import {
  checkPieces,
  createLineMap,
  type Piece,
  type SparseMap,
  sparseOfHeader,
  sparseOfPax,
  takeBlock,
} from "./tar-sparse.ts";

/**
 * Reading of layer tars: ustar, v7, star, GNU long names, PAX (POSIX.1-2001; image-spec layer.md) and sparse files.
 * Not tar-stream: that decodes PAX values as text, which destroys binary ones such as security.capability.
 *
 * Names are *byte strings*: one character for each byte (latin1), because a file name need not be UTF-8.
 */
export type TarEntry = {
  type: "file" | "link" | "symlink" | "character-device" | "block-device" | "directory" | "fifo";
  name: string;
  linkname: string;
  /** Permission bits with setuid, setgid and sticky. */
  mode: number;
  uid: number;
  gid: number;
  /** Of the file as it shall be, holes included. */
  size: number;
  /** Of the file whose data has holes: less than its size comes. */
  isSparse: boolean;
  /** Nanoseconds since 1970. */
  mtime: bigint;
  major: number;
  minor: number;
  xattrs: Map<string, Uint8Array>;
};

/** Gets what is read, in order: an entry, the data of a file in pieces with their places in it, its end. */
export type TarSink = {
  entry(entry: TarEntry): void;
  data(chunk: Uint8Array, offset: number): void;
  end(): void;
};

/** Takes the tar in pieces of any size; synchronous, holds at most one header, its extensions and the global ones. */
export type TarReader = { push(chunk: Uint8Array): void; finish(): void };

const BLOCK = 512;
const EXTENSION_MAX = 1024 * 1024;
/** Of all global headers together: each entry is given it again. */
const GLOBALS_MAX = 64 * 1024;
/** Extended headers in a row. An entry has four at most: global, own, long name, long link. */
const EXTENSIONS_MAX = 16;
const PATH_MAX = 4096;
const ID_MAX = 2 ** 32 - 2;
const DEVICE_MAX = 2 ** 32 - 1;

type Target = "none" | "file" | "extension" | "sparse-lines";

export const createTarReader = (sink: TarSink): TarReader => {
  const block = Buffer.alloc(BLOCK);
  let filled = 0;
  /** Bytes of the current body still to come, then the padding behind it. */
  let body = 0;
  let padding = 0;
  let target: Target = "none";
  let extension: { flag: string; parts: Uint8Array[] } | undefined;
  /** Extended headers since the last entry. */
  let extensions = 0;
  let globals: Pax = new Map();
  let locals: Pax = new Map();
  let longName: string | undefined;
  let longLink: string | undefined;
  let ended = false;
  /** Where the next byte of a file goes, and the pieces of a sparse one from the current one on. */
  let offset = 0;
  let sparse: { map: SparseMap; size: number; at: number; within: number } | undefined;
  let lines: { map: ReturnType<typeof createLineMap>; taken: number; isRead: boolean } | undefined;

  const begin = (header: Buffer) => {
    if (header.every((byte) => byte === 0)) {
      ended = true;
      return;
    }
    verify(header);
    const flag = String.fromCharCode(header[156]!);
    const size = number(header, 124, 12, "size");
    if ("xgLK".includes(flag)) {
      if (size > EXTENSION_MAX) throw invalid(`an extended header of ${size} bytes`);
      if (++extensions > EXTENSIONS_MAX)
        throw invalid(`more than ${EXTENSIONS_MAX} extended headers without an entry`);
      extension = { flag, parts: [] };
      [target, body] = ["extension", size];
      padding = paddingOf(body);
      if (body === 0) bodyEnded();
      return;
    }
    const pax: Pax = globals.size === 0 ? locals : new Map([...globals, ...locals]);
    const { entry, stored, map } = entryOf(header, flag, size, pax, longName, longLink);
    [locals, longName, longLink, extensions] = [new Map(), undefined, undefined, 0];
    sink.entry(entry);
    // Only files have a body; the size of a link is that of what it links to.
    [target, body] = entry.type === "file" ? ["file", stored] : ["none", 0];
    padding = paddingOf(body);
    offset = 0;
    sparse = map && { map, size: entry.size, at: 0, within: 0 };
    lines = undefined;
    if (map?.rest === "blocks") return;
    if (map?.rest === "lines") {
      target = "sparse-lines";
      lines = { map: createLineMap(map.pieces), taken: 0, isRead: false };
    } else mapRead();
    if (body === 0) bodyEnded();
  };

  /** All pieces are known now; those without a byte say nothing. */
  const mapRead = () => {
    if (sparse === undefined) return;
    const { pieces } = sparse.map;
    checkPieces(pieces, sparse.size, body);
    sparse.map = { pieces: pieces.filter(({ length }) => length > 0), rest: "none" };
  };

  const moreOfMap = () => {
    const { map } = sparse!;
    if (takeBlock(block, map.pieces)) return;
    mapRead();
    if (body === 0) bodyEnded();
  };

  const data = (chunk: Uint8Array) => {
    if (sparse === undefined) {
      sink.data(chunk, offset);
      offset += chunk.length;
      return;
    }
    for (let at = 0; at < chunk.length; ) {
      const piece: Piece = sparse.map.pieces[sparse.at]!;
      const part = chunk.subarray(at, at + piece.length - sparse.within);
      sink.data(part, piece.offset + sparse.within);
      at += part.length;
      sparse.within += part.length;
      if (sparse.within === piece.length) [sparse.at, sparse.within] = [sparse.at + 1, 0];
    }
  };

  /** Bytes of `part` that were the map's, with what fills its last block. */
  const mapLines = (part: Uint8Array): number => {
    let at = 0;
    for (; at < part.length && target === "sparse-lines"; at++) {
      if (!lines!.isRead) lines!.isRead = lines!.map.push(part[at]!);
      lines!.taken++;
      if (lines!.isRead && lines!.taken % BLOCK === 0) target = "file";
    }
    return at;
  };

  const isReadingMap = () => target === "sparse-lines";

  const bodyEnded = () => {
    const was = target;
    target = "none";
    if (was === "sparse-lines") throw invalid("a sparse map that breaks off");
    if (was === "file") sink.end();
    if (was !== "extension") return;
    const { flag, parts } = extension!;
    extension = undefined;
    const bytes = Buffer.concat(parts);
    if (flag === "L") longName = text(bytes, 0, bytes.length);
    else if (flag === "K") longLink = text(bytes, 0, bytes.length);
    else if (flag === "g") globals = withGlobals(globals, bytes);
    else locals = paxRecords(bytes);
  };

  return {
    push(chunk) {
      let at = 0;
      while (at < chunk.length && !ended) {
        if (sparse?.map.rest !== "blocks" && body > 0) {
          const part = chunk.subarray(at, at + body);
          if (target === "sparse-lines") {
            const taken = mapLines(part);
            at += taken;
            body -= taken;
            if (taken > 0 && !isReadingMap()) mapRead();
          } else {
            at += part.length;
            body -= part.length;
            if (target === "file") data(part);
            // A copy: the chunk's memory may be used again by who gave it.
            else if (target === "extension") extension!.parts.push(part.slice());
          }
          if (body === 0) bodyEnded();
        } else if (sparse?.map.rest !== "blocks" && padding > 0) {
          const skipped = Math.min(padding, chunk.length - at);
          at += skipped;
          padding -= skipped;
        } else {
          const part = chunk.subarray(at, at + BLOCK - filled);
          block.set(part, filled);
          filled += part.length;
          at += part.length;
          if (filled === BLOCK) {
            filled = 0;
            if (sparse?.map.rest === "blocks") moreOfMap();
            else begin(block);
          }
        }
      }
    },
    finish() {
      const isInside = body > 0 || padding > 0 || filled > 0 || sparse?.map.rest === "blocks";
      if (!ended && isInside) throw invalid("it ends in the middle");
      if (locals.size > 0 || longName !== undefined || longLink !== undefined)
        throw invalid("it ends after an extended header");
    },
  };
};

/** Copies, as a value is a view of its whole header: what stays until the end is no more than what is counted. */
const withGlobals = (before: Pax, bytes: Buffer): Pax => {
  const globals: Pax = new Map([
    ...before,
    ...[...paxRecords(bytes)].map(([key, value]): [string, Buffer] => [key, Buffer.from(value)]),
  ]);
  let sum = 0;
  for (const [key, value] of globals) sum += key.length + value.length;
  if (sum > GLOBALS_MAX) throw invalid(`global headers of more than ${GLOBALS_MAX} bytes`);
  return globals;
};

const paddingOf = (body: number) => (BLOCK - (body % BLOCK)) % BLOCK;

const TYPES: Record<string, TarEntry["type"]> = {
  ...{ "0": "file", "\0": "file", "7": "file", S: "file", "1": "link", "2": "symlink" },
  ...{ "3": "character-device", "4": "block-device", "5": "directory", "6": "fifo" },
};

const NO_XATTRS: Map<string, Uint8Array> = new Map();

const entryOf = (
  header: Buffer,
  flag: string,
  headerSize: number,
  pax: Pax,
  longName: string | undefined,
  longLink: string | undefined,
): { entry: TarEntry; stored: number; map: SparseMap | undefined } => {
  const listed = Object.hasOwn(TYPES, flag) ? TYPES[flag]! : undefined;
  if (listed === undefined) throw invalid(`an entry of the unknown type ${JSON.stringify(flag)}`);
  const stored = bounded(paxNumber(pax, "size") ?? headerSize, Number.MAX_SAFE_INTEGER, "size");
  const bySparse: ReturnType<typeof sparseOfPax> =
    flag === "S" ? sparseOfHeader(header) : listed === "file" && pax.size > 0 ? sparseOfPax(pax) : undefined;
  const name: string = bySparse?.name ?? longName ?? paxText(pax, "path") ?? headerName(header);
  const linkname = longLink ?? paxText(pax, "linkpath") ?? text(header, 157, 100);
  if (name.length > PATH_MAX || linkname.length > PATH_MAX) throw invalid("a name longer than 4096 bytes");
  // v7 marks directories by a slash alone.
  const type = listed === "file" && name.endsWith("/") ? "directory" : listed;
  const isDevice = type === "character-device" || type === "block-device";
  const entry: TarEntry = {
    type,
    name,
    linkname,
    mode: number(header, 100, 8, "mode") & 0o7777,
    uid: bounded(paxNumber(pax, "uid") ?? number(header, 108, 8, "uid"), ID_MAX, "uid"),
    gid: bounded(paxNumber(pax, "gid") ?? number(header, 116, 8, "gid"), ID_MAX, "gid"),
    size: bySparse?.size ?? stored,
    isSparse: bySparse !== undefined,
    mtime: timeOf(pax, header),
    major: isDevice ? bounded(number(header, 329, 8, "device"), DEVICE_MAX, "device") : 0,
    minor: isDevice ? bounded(number(header, 337, 8, "device"), DEVICE_MAX, "device") : 0,
    xattrs: pax.size === 0 ? NO_XATTRS : xattrsOf(pax),
  };
  return { entry, stored, map: type === "file" ? bySparse?.map : undefined };
};

const XATTR = "SCHILY.xattr.";

const xattrsOf = (pax: Pax): Map<string, Uint8Array> => {
  const found = new Map<string, Uint8Array>();
  for (const [key, value] of pax) if (key.startsWith(XATTR)) found.set(key.slice(XATTR.length), value);
  return found;
};

const headerName = (header: Buffer): string => {
  const name = text(header, 0, 100);
  // Only POSIX ("ustar\0") and star have a prefix; GNU ("ustar ") keeps times there.
  if (header.toString("latin1", 257, 263) !== "ustar\0") return name;
  const isStar = header.toString("latin1", 508, 512) === "tar\0";
  const prefix = text(header, 345, isStar ? 131 : 155);
  return prefix === "" ? name : `${prefix}/${name}`;
};

/** The kernel keeps seconds in 64 bits, file systems in fewer; what is beyond is not meant. */
const SECONDS_MAX = 2n ** 53n;

const timeOf = (pax: Pax, header: Buffer): bigint => {
  const mtime = paxTime(pax, "mtime") ?? BigInt(signed(header, 136, 12, "mtime")) * 1_000_000_000n;
  const seconds = mtime / 1_000_000_000n;
  if (seconds > SECONDS_MAX || seconds < -SECONDS_MAX) throw invalid("a time that is none");
  return mtime;
};

const verify = (header: Buffer): void => {
  let [unsigned, signedSum] = [0, 0];
  for (let n = 0; n < BLOCK; n++) {
    const byte = n >= 148 && n < 156 ? 32 : header[n]!;
    unsigned += byte;
    signedSum += byte > 127 ? byte - 256 : byte;
  }
  const sum = number(header, 148, 8, "checksum");
  // Old tars summed signed characters.
  if (sum !== unsigned && sum !== signedSum) throw invalid("a header's checksum is wrong");
};
