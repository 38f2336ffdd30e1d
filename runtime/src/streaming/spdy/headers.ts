import { createInflate, type Inflate } from "node:zlib";

/**
 * Header blocks of SPDY/3 (draft-mbelshe-httpbis-spdy-00, section 2.6.10): name/value pairs in one zlib stream
 * per direction, primed with the protocol's dictionary.
 */

/** The dictionary's words come with their length before them, the rest as it stands. */
const words =
  "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow " +
  "authorization cache-control connection content-base content-encoding content-language content-length " +
  "content-location content-md5 content-range content-type date etag expect expires from host if-match " +
  "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma " +
  "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade " +
  "user-agent vary via warning www-authenticate method get status";
const moreWords = "version HTTP/1.1 url public set-cookie keep-alive origin";
const rest =
  "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505" +
  "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized" +
  "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable" +
  "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT" +
  "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript," +
  "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

const lengthPrefixed = (text: string): Buffer => {
  const length = Buffer.allocUnsafe(4);
  length.writeUInt32BE(text.length);
  return Buffer.concat([length, Buffer.from(text, "latin1")]);
};

export const dictionary = Buffer.concat([
  ...[...words.split(" "), "200 OK", ...moreWords.split(" ")].map(lengthPrefixed),
  Buffer.from(rest, "latin1"),
]);

/** A block larger than this, inflated, is an attack: real ones have some hundred bytes. */
const maxBlock = 64 * 1024;

export type Headers = Map<string, string>;

/** Decodes the name/value pairs of an inflated block. */
export function decodePairs(block: Buffer): Headers {
  const headers: Headers = new Map();
  let at = 0;
  const word = () => {
    if (at + 4 > block.length) throw new Error("SPDY header block ends within a length");
    at += 4;
    return block.readUInt32BE(at - 4);
  };
  const text = () => {
    const length = word();
    if (at + length > block.length) throw new Error("SPDY header block ends within a string");
    at += length;
    return block.toString("utf8", at - length, at);
  };
  for (let count = word(); count > 0; count--) headers.set(text().toLowerCase(), text());
  return headers;
}

export function encodePairs(headers: Headers): Buffer {
  const count = Buffer.allocUnsafe(4);
  count.writeUInt32BE(headers.size);
  const parts = [...headers].flatMap(([name, value]) => [lengthPrefixed(name), lengthPrefixed(value)]);
  return Buffer.concat([count, ...parts]);
}

/** The receiving side of a connection's header compression. One block at a time, in order. */
export class HeaderInflater {
  readonly #inflate: Inflate = createInflate({ dictionary });
  #parts: Buffer[] = [];
  #size = 0;
  #failed: Error | undefined;

  constructor() {
    this.#inflate.on("data", (part: Buffer) => {
      this.#size += part.length;
      if (this.#size <= maxBlock) this.#parts.push(part);
    });
    this.#inflate.on("error", (error) => {
      this.#failed = error;
    });
  }

  async decode(block: Buffer): Promise<Headers> {
    this.#parts = [];
    this.#size = 0;
    await new Promise<void>((resolve, reject) => {
      if (this.#failed) return reject(this.#failed);
      this.#inflate.once("error", reject);
      this.#inflate.write(block, () => {
        this.#inflate.off("error", reject);
        resolve();
      });
    });
    if (this.#size > maxBlock) throw new Error(`SPDY header block of more than ${maxBlock} bytes`);
    return decodePairs(Buffer.concat(this.#parts));
  }

  close(): void {
    this.#inflate.close();
  }
}

/**
 * The sending side. We answer with a handful of empty header blocks, so they go out as stored deflate blocks:
 * valid for every inflater, and without a compressor's quarter megabyte per connection.
 */
export class HeaderDeflater {
  #started = false;

  encode(headers: Headers): Buffer {
    const data = encodePairs(headers);
    const stored = Buffer.allocUnsafe(5);
    stored.writeUInt8(0, 0);
    stored.writeUInt16LE(data.length, 1);
    stored.writeUInt16LE(~data.length & 0xffff, 3);
    if (this.#started) return Buffer.concat([stored, data, flushed]);
    this.#started = true;
    const prologue = Buffer.from([0x78, 0x20, 0, 0, 0, 0]);
    prologue.writeUInt32BE(adler32(dictionary), 2);
    return Buffer.concat([prologue, stored, data, flushed]);
  }
}

/** An empty stored block (Z_SYNC_FLUSH): until it comes, Go's inflater keeps what it has to itself. */
const flushed = Buffer.from([0, 0, 0, 0xff, 0xff]);

/** Adler-32 (RFC 1950, section 8.2). */
function adler32(data: Buffer): number {
  let a = 1;
  let b = 0;
  for (const byte of data) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  return ((b << 16) | a) >>> 0;
}
