import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * Reading of layer tars: ustar, v7, GNU long names and PAX (POSIX.1-2001; image-spec layer.md). Not tar-stream:
 * that decodes PAX values as text, which destroys binary ones such as security.capability.
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
  size: number;
  /** Seconds since 1970, with a fraction. */
  mtime: number;
  major: number;
  minor: number;
  xattrs: Map<string, Uint8Array>;
};

/** Gets what is read, in order: an entry, the data of a file in pieces, its end. */
export type TarSink = {
  entry(entry: TarEntry): void;
  data(chunk: Uint8Array): void;
  end(): void;
};

/** Takes the tar in pieces of any size; synchronous, holds at most one header and its extension. */
export type TarReader = { push(chunk: Uint8Array): void; finish(): void };

const BLOCK = 512;
const EXTENSION_MAX = 1024 * 1024;
const PATH_MAX = 4096;
const ID_MAX = 2 ** 32 - 2;

const invalid = (what: string) => new RuntimeError("invalid-argument", `Cannot read layer tar: ${what}`);

type Pax = Map<string, Buffer>;

export const createTarReader = (sink: TarSink): TarReader => {
  const block = Buffer.alloc(BLOCK);
  let filled = 0;
  /** Bytes of the current body still to come, then the padding behind it. */
  let body = 0;
  let padding = 0;
  let target: "none" | "file" | "extension" = "none";
  let extension: { flag: string; parts: Uint8Array[] } | undefined;
  let globals: Pax = new Map();
  let locals: Pax = new Map();
  let longName: string | undefined;
  let longLink: string | undefined;
  let ended = false;

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
      extension = { flag, parts: [] };
      [target, body] = ["extension", size];
    } else {
      const pax: Pax = new Map([...globals, ...locals]);
      const entry = entryOf(header, flag, size, pax, longName, longLink);
      [locals, longName, longLink] = [new Map(), undefined, undefined];
      sink.entry(entry);
      // Only files have a body; the size of a link is that of what it links to.
      [target, body] = entry.type === "file" ? ["file", entry.size] : ["none", 0];
    }
    padding = (BLOCK - (body % BLOCK)) % BLOCK;
    if (body === 0) bodyEnded();
  };

  const bodyEnded = () => {
    const was = target;
    target = "none";
    if (was === "file") sink.end();
    if (was !== "extension") return;
    const { flag, parts } = extension!;
    extension = undefined;
    const bytes = Buffer.concat(parts);
    if (flag === "L") longName = text(bytes, 0, bytes.length);
    else if (flag === "K") longLink = text(bytes, 0, bytes.length);
    else if (flag === "g") globals = new Map([...globals, ...paxRecords(bytes)]);
    else locals = paxRecords(bytes);
  };

  return {
    push(chunk) {
      let at = 0;
      while (at < chunk.length && !ended) {
        if (body > 0) {
          const part = chunk.subarray(at, at + body);
          at += part.length;
          body -= part.length;
          if (target === "file") sink.data(part);
          // A copy: the chunk's memory may be used again by who gave it.
          else if (target === "extension") extension!.parts.push(part.slice());
          if (body === 0) bodyEnded();
        } else if (padding > 0) {
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
            begin(block);
          }
        }
      }
    },
    finish() {
      if (!ended && (body > 0 || padding > 0 || filled > 0)) throw invalid("it ends in the middle");
      if (locals.size > 0 || longName !== undefined || longLink !== undefined)
        throw invalid("it ends after an extended header");
    },
  };
};

const TYPES: Record<string, TarEntry["type"]> = {
  ...{ "0": "file", "\0": "file", "7": "file", "1": "link", "2": "symlink" },
  ...{ "3": "character-device", "4": "block-device", "5": "directory", "6": "fifo" },
};

const entryOf = (
  header: Buffer,
  flag: string,
  headerSize: number,
  pax: Pax,
  longName: string | undefined,
  longLink: string | undefined,
): TarEntry => {
  if (flag === "S" || [...pax.keys()].some((key) => key.startsWith("GNU.sparse.")))
    throw invalid("it has sparse files, which layers cannot have");
  const type = Object.hasOwn(TYPES, flag) ? TYPES[flag]! : undefined;
  if (type === undefined) throw invalid(`an entry of the unknown type ${JSON.stringify(flag)}`);
  const name = paxText(pax, "path") ?? longName ?? headerName(header);
  const linkname = paxText(pax, "linkpath") ?? longLink ?? text(header, 157, 100);
  if (name.length > PATH_MAX || linkname.length > PATH_MAX) throw invalid("a name longer than 4096 bytes");
  const isDevice = type === "character-device" || type === "block-device";
  return {
    // v7 marks directories by a slash alone.
    type: type === "file" && name.endsWith("/") ? "directory" : type,
    name,
    linkname,
    mode: number(header, 100, 8, "mode") & 0o7777,
    uid: bounded(paxNumber(pax, "uid") ?? number(header, 108, 8, "uid"), ID_MAX, "uid"),
    gid: bounded(paxNumber(pax, "gid") ?? number(header, 116, 8, "gid"), ID_MAX, "gid"),
    size: bounded(paxNumber(pax, "size") ?? headerSize, Number.MAX_SAFE_INTEGER, "size"),
    mtime: mtimeOf(pax, header),
    major: isDevice ? bounded(number(header, 329, 8, "device"), ID_MAX, "device") : 0,
    minor: isDevice ? bounded(number(header, 337, 8, "device"), ID_MAX, "device") : 0,
    xattrs: new Map(
      [...pax]
        .filter(([key]) => key.startsWith("SCHILY.xattr."))
        .map(([key, value]) => [key.slice("SCHILY.xattr.".length), value]),
    ),
  };
};

const headerName = (header: Buffer): string => {
  const name = text(header, 0, 100);
  // Only POSIX ("ustar\0") has a prefix; GNU ("ustar ") keeps times there.
  const prefix = header.toString("latin1", 257, 263) === "ustar\0" ? text(header, 345, 155) : "";
  return prefix === "" ? name : `${prefix}/${name}`;
};

const mtimeOf = (pax: Pax, header: Buffer): number => {
  const value = pax.get("mtime");
  const mtime = value === undefined ? signed(header, 136, 12, "mtime") : Number(value.toString("latin1"));
  if (!Number.isFinite(mtime) || Math.abs(mtime) > 2 ** 53) throw invalid("a time that is none");
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

/** Text up to the first NUL. */
const text = (bytes: Buffer, at: number, length: number): string => {
  const field = bytes.subarray(at, at + length);
  const end = field.indexOf(0);
  return field.toString("latin1", 0, end < 0 ? field.length : end);
};

const number = (header: Buffer, at: number, length: number, what: string): number =>
  bounded(signed(header, at, length, what), Number.MAX_SAFE_INTEGER, what);

/** Octal digits, or base 256 where the first bit is set. */
const signed = (header: Buffer, at: number, length: number, what: string): number => {
  const first = header[at]!;
  if (first & 0x80) {
    let value = BigInt(first & 0x40 ? first - 256 : first & 0x7f);
    for (const byte of header.subarray(at + 1, at + length)) value = (value << 8n) | BigInt(byte);
    if (value > Number.MAX_SAFE_INTEGER || value < Number.MIN_SAFE_INTEGER)
      throw invalid(`a ${what} out of range`);
    return Number(value);
  }
  const digits = text(header, at, length).trim();
  if (!/^[0-7]*$/.test(digits)) throw invalid(`a ${what} that is no number`);
  return digits === "" ? 0 : Number.parseInt(digits, 8);
};

const bounded = (value: number, max: number, what: string): number => {
  if (!Number.isSafeInteger(value) || value < 0 || value > max) throw invalid(`a ${what} out of range`);
  return value;
};

const paxText = (pax: Pax, key: string): string | undefined => {
  const value = pax.get(key);
  if (value === undefined || value.length === 0) return undefined;
  if (value.includes(0)) throw invalid(`a NUL byte in "${key}"`);
  return value.toString("latin1");
};

const paxNumber = (pax: Pax, key: string): number | undefined => {
  const value = pax.get(key)?.toString("latin1");
  if (value === undefined || value === "") return undefined;
  if (!/^\d{1,16}$/.test(value)) throw invalid(`a ${key} that is no number`);
  return Number(value);
};

/** Records "LENGTH KEY=VALUE\n"; the value is any bytes. */
const paxRecords = (bytes: Buffer): Pax => {
  const records: Pax = new Map();
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(32, at);
    const digits = space < 0 ? "" : bytes.toString("latin1", at, space);
    const end = at + Number(digits);
    const equals = bytes.indexOf(61, space);
    if (
      !/^\d{1,7}$/.test(digits) ||
      equals < 0 ||
      equals >= end ||
      end > bytes.length ||
      bytes[end - 1] !== 10
    )
      throw invalid("a PAX record that is none");
    records.set(bytes.toString("utf8", space + 1, equals), bytes.subarray(equals + 1, end - 1));
    at = end;
  }
  return records;
};
