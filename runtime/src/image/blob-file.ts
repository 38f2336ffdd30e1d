import { createHash, type Hash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { EndpointError } from "./endpoint-error.ts";
import type { Descriptor } from "./manifest.ts";

export const hashOf = (digest: string): Hash => createHash(digest.slice(0, digest.indexOf(":")));

/** Throws unless the digest ends in these digits. */
export const assertDigest = (what: string, expected: string, hex: string): void => {
  if (expected.endsWith(`:${hex}`)) return;
  throw new EndpointError("invalid", `${what} does not have the digest ${expected} but ${hex}`);
};

/** Bytes gathered before a write: packets of a network are small, system calls are not cheap. */
const gather = 512 << 10;

/**
 * A blob on its way into a file, hashed as it comes. It survives its source: what one connection or mirror gave is
 * continued by the next.
 */
export class BlobFile implements AsyncDisposable {
  readonly descriptor: Descriptor;
  readonly what: string;
  readonly #file: FileHandle;
  #hash: Hash;
  #offset = 0;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;

  private constructor(descriptor: Descriptor, file: FileHandle) {
    this.descriptor = descriptor;
    this.what = `blob ${descriptor.digest}`;
    this.#file = file;
    this.#hash = hashOf(descriptor.digest);
  }

  /** Opens a new file, or one that an earlier attempt left: what is in it is hashed again. */
  static async open(path: string, descriptor: Descriptor, signal: AbortSignal): Promise<BlobFile> {
    const file = await open(path, "a+", 0o600);
    const blob = new BlobFile(descriptor, file);
    try {
      const { size } = await file.stat();
      if (size > descriptor.size) await file.truncate(0);
      else if (size > 0) {
        for await (const chunk of file.createReadStream({ start: 0, autoClose: false, signal })) {
          blob.#hash.update(chunk as Buffer);
          blob.#offset += (chunk as Buffer).length;
        }
      }
      return blob;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** How far it is. */
  get offset(): number {
    return this.#offset;
  }

  async write(chunk: Uint8Array): Promise<void> {
    if (this.#offset + chunk.length > this.descriptor.size)
      throw new EndpointError("invalid", `${this.what} has more than its ${this.descriptor.size} bytes`);
    this.#hash.update(chunk);
    this.#offset += chunk.length;
    this.#pending.push(chunk);
    this.#pendingBytes += chunk.length;
    if (this.#pendingBytes >= gather) await this.flush();
  }

  /** Puts what was gathered into the file; without it only the file's content is lost, never its truth. */
  async flush(): Promise<void> {
    if (this.#pendingBytes === 0) return;
    const chunks = this.#pending;
    const wanted = this.#pendingBytes;
    [this.#pending, this.#pendingBytes] = [[], 0];
    let { bytesWritten } = await this.#file.writev(chunks);
    // A nearly full disk takes a part; the next call says ENOSPC.
    while (bytesWritten < wanted) {
      const rest = Buffer.concat(chunks).subarray(bytesWritten);
      bytesWritten += (await this.#file.write(rest)).bytesWritten;
    }
  }

  /** Begins again: the source cannot continue, or what it gave was wrong. */
  async reset(): Promise<void> {
    [this.#pending, this.#pendingBytes] = [[], 0];
    await this.#file.truncate(0);
    this.#hash = hashOf(this.descriptor.digest);
    this.#offset = 0;
  }

  /** Throws unless all of the blob is there and has its digest. A wrong one is thrown away. */
  async finish(): Promise<void> {
    if (this.#offset < this.descriptor.size)
      throw new EndpointError("unavailable", `${this.what} ended after ${this.#offset} bytes`);
    await this.flush();
    try {
      assertDigest(this.what, this.descriptor.digest, this.#hash.digest("hex"));
    } catch (error) {
      await this.reset();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.flush();
    } catch {
      // A full disk: what is missing will be fetched again.
    }
    await this.#file.close();
  }
}
