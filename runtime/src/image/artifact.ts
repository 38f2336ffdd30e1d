import { open } from "node:fs/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Descriptor } from "./manifest.ts";

/**
 * OCI artifacts as image volumes: each blob becomes a file, named by its title annotation, or by its digest. A tar
 * layer among them is unpacked as that of an image.
 */

const title = "org.opencontainers.image.title";

/** Where a blob of an artifact lies in the volume. A title that is no plain relative path is refused. */
export const artifactPath = (descriptor: Descriptor): string => {
  const name = descriptor.annotations?.[title];
  if (name === undefined || name === "") return descriptor.digest.replace(":", "-");
  const parts = name.split("/").filter((part) => part !== "." && part !== "");
  const plain =
    !name.startsWith("/") &&
    parts.length > 0 &&
    Buffer.byteLength(name) <= 1024 &&
    // A whiteout's name would take a file of another blob away.
    parts.every((part) => part !== ".." && !part.startsWith(".wh.") && Buffer.byteLength(part) <= 255) &&
    !/[\p{Cc}\\]/u.test(name);
  if (plain) return parts.join("/");
  throw new RuntimeError(
    "failed-precondition",
    `its blob ${descriptor.digest} has the title ${JSON.stringify(name.slice(0, 80))}, which is no file name`,
  );
};

const block = 512;
const octalMax = 0o77777777777;

/** A POSIX tar with one file, owned by root, and the folders above it. */
export async function* fileAsTar(file: string, path: string, size: number): AsyncGenerator<Uint8Array> {
  const folders = path.split("/").slice(0, -1);
  for (let n = 1; n <= folders.length; n++)
    yield* entryOf(`${folders.slice(0, n).join("/")}/`, 0, "5", 0o755);
  yield* entryOf(path, size, "0", 0o644);
  await using source = await open(file);
  for await (const chunk of source.createReadStream({ highWaterMark: 512 << 10, autoClose: false }))
    yield chunk as Buffer;
  yield Buffer.alloc(((block - (size % block)) % block) + 2 * block);
}

/** Headers of an entry; what does not fit the old header stands in an extended one (pax). */
function* entryOf(path: string, size: number, type: string, mode: number): Generator<Uint8Array> {
  const records = [
    ...(Buffer.byteLength(path) > 100 ? [paxRecord("path", path)] : []),
    ...(size > octalMax ? [paxRecord("size", String(size))] : []),
  ].join("");
  if (records !== "") {
    const content = Buffer.from(records);
    yield headerOf("pax", content.length, "x", 0o644);
    yield content;
    yield Buffer.alloc((block - (content.length % block)) % block);
  }
  yield headerOf(Buffer.byteLength(path) > 100 ? "long" : path, size > octalMax ? 0 : size, type, mode);
}

const paxRecord = (key: string, value: string): string => {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + String(rest).length;
  if (String(length).length !== String(rest).length) length = rest + String(length).length;
  return `${length} ${key}=${value}\n`;
};

const headerOf = (path: string, size: number, type: string, mode: number): Uint8Array => {
  const header = Buffer.alloc(block);
  const octal = (value: number, at: number, width: number): void => {
    header.write(`${value.toString(8).padStart(width - 1, "0")}\0`, at, "latin1");
  };
  header.write(path, 0);
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(0, 136, 12);
  header.write("        ", 148, "latin1");
  header.write(type, 156, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  return header;
};
