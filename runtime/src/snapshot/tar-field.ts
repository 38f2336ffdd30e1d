import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/* Fields of tar headers. Text is a *byte string*: one character for each byte (latin1). */

export const invalid = (what: string) =>
  new RuntimeError("invalid-argument", `Cannot read layer tar: ${what}`);

/** Text up to the first NUL. */
export const text = (bytes: Buffer, at: number, length: number): string => {
  const field = bytes.subarray(at, at + length);
  const end = field.indexOf(0);
  return field.toString("latin1", 0, end < 0 ? field.length : end);
};

export const number = (header: Buffer, at: number, length: number, what: string): number =>
  bounded(signed(header, at, length, what), Number.MAX_SAFE_INTEGER, what);

/** Octal digits, or base 256 where the first bit is set. */
export const signed = (header: Buffer, at: number, length: number, what: string): number => {
  const first = header[at]!;
  if (first & 0x80) {
    let value = BigInt(first & 0x40 ? first - 256 : first & 0x7f);
    for (const byte of header.subarray(at + 1, at + length)) value = (value << 8n) | BigInt(byte);
    if (value > Number.MAX_SAFE_INTEGER || value < Number.MIN_SAFE_INTEGER)
      throw invalid(`a ${what} out of range`);
    return Number(value);
  }
  // By hand: this runs for each field of each header.
  let value = 0;
  let state: "before" | "digits" | "after" = "before";
  for (let n = at; n < at + length; n++) {
    const byte = header[n]!;
    if (byte >= 48 && byte <= 55) {
      if (state === "after") throw invalid(`a ${what} that is no number`);
      state = "digits";
      value = value * 8 + byte - 48;
    } else if (byte === 0) break;
    else if (byte !== 32) throw invalid(`a ${what} that is no number`);
    else if (state === "digits") state = "after";
  }
  return value;
};

export const bounded = (value: number, max: number, what: string): number => {
  if (!Number.isSafeInteger(value) || value < 0 || value > max) throw invalid(`a ${what} out of range`);
  return value;
};

/** Keys and values of extended headers. A value is any bytes. */
export type Pax = Map<string, Buffer>;

export const paxText = (pax: Pax, key: string): string | undefined => {
  const value = pax.get(key);
  if (value === undefined || value.length === 0) return undefined;
  if (value.includes(0)) throw invalid(`a NUL byte in "${key}"`);
  return value.toString("latin1");
};

export const paxNumber = (pax: Pax, key: string): number | undefined => {
  const value = pax.get(key)?.toString("latin1");
  if (value === undefined || value === "") return undefined;
  if (!/^\d{1,16}$/.test(value)) throw invalid(`a ${key} that is no number`);
  return Number(value);
};

/** Decimal seconds as nanoseconds; digits beyond them are cut off. */
export const paxTime = (pax: Pax, key: string): bigint | undefined => {
  const value = pax.get(key)?.toString("latin1");
  if (value === undefined || value === "") return undefined;
  const [, sign, seconds, fraction = ""] = /^(-?)(\d{1,16})(?:\.(\d*))?$/.exec(value) ?? [];
  if (seconds === undefined) throw invalid(`a ${key} that is no time`);
  const nanoseconds = BigInt(seconds) * 1_000_000_000n + BigInt(fraction.slice(0, 9).padEnd(9, "0"));
  return sign === "-" ? -nanoseconds : nanoseconds;
};

/** Keys that somebody reads; of whatever else stands there nothing is kept. */
const READ = new Set(["path", "linkpath", "size", "uid", "gid", "mtime"]);
const isRead = (key: string) =>
  READ.has(key) || key.startsWith("SCHILY.xattr.") || key.startsWith("GNU.sparse.");

const SPARSE_PAIR = /^GNU\.sparse\.(offset|numbytes)$/;

/** Records "LENGTH KEY=VALUE\n". */
export const paxRecords = (bytes: Buffer): Pax => {
  const records: Pax = new Map();
  const pairs: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(32, at);
    // A length has seven digits at most: what goes on without a space is no record, and not searched twice.
    const digits = space < 0 || space - at > 7 ? "" : bytes.toString("latin1", at, space);
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
    const key = bytes.toString("utf8", space + 1, equals);
    const value = bytes.subarray(equals + 1, end - 1);
    // The one key that comes again, a pair for each piece of a sparse file (GNU format 0.0).
    if (SPARSE_PAIR.test(key)) {
      if (key.endsWith("offset") !== (pairs.length % 2 === 0)) throw invalid("a sparse map out of order");
      pairs.push(value);
    } else if (isRead(key)) records.set(key, value);
    at = end;
  }
  if (pairs.length > 0)
    records.set("GNU.sparse.map", Buffer.from(pairs.map((pair) => pair.toString("latin1")).join(",")));
  return records;
};
