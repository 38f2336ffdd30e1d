import { open } from "node:fs/promises";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { paddingOf, tarEnd, tarHeader, type WrittenEntry } from "../snapshot/tar-header.ts";
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

/** A tar with one file, owned by root, and the folders above it. */
export async function* fileAsTar(file: string, path: string, size: number): AsyncGenerator<Uint8Array> {
  const entry = (name: string, rest: Pick<WrittenEntry, "type" | "mode" | "size">): Buffer =>
    tarHeader({
      name: Buffer.from(name).toString("latin1"),
      uid: 0,
      gid: 0,
      mtime: 0n,
      xattrs: new Map(),
      ...rest,
    });
  const folders = path.split("/").slice(0, -1);
  for (let n = 1; n <= folders.length; n++)
    yield entry(`${folders.slice(0, n).join("/")}/`, { type: "directory", mode: 0o755, size: 0 });
  yield entry(path, { type: "file", mode: 0o644, size });
  await using source = await open(file);
  for await (const chunk of source.createReadStream({ highWaterMark: 512 << 10, autoClose: false }))
    yield chunk as Buffer;
  yield Buffer.alloc(paddingOf(size) + tarEnd.length);
}
