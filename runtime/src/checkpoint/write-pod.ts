import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { mkdir, mkdtemp, open, readdir, rename, rm, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { chunksOf } from "./chunks.ts";
import { layout } from "./layout.ts";
import type { PodDump } from "./manifest.ts";

/**
 * Writes a pod's checkpoint below the caller's directory `output`, and nowhere else: `save` leaves checkpoint/ in a
 * directory of its own there; then come the files, then pod.dump with their digests. On failure nothing stays.
 */
export const writePod = async (
  output: string,
  about: Omit<PodDump, "files">,
  save: (directory: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  await using undo = new AsyncDisposableStack();
  const refused = (error: unknown): never => {
    throw new RuntimeError("failed-precondition", `Cannot write to "${output}": ${messageOf(error)}`, {
      cause: error,
    });
  };
  const made = await mkdir(output, { recursive: true, mode: 0o700 }).catch(refused);
  if (made !== undefined) undo.defer(() => rmdir(output).catch(() => {}));
  if ((await readdir(output).catch(refused)).length > 0)
    throw new RuntimeError("failed-precondition", `Cannot write to "${output}": it is not empty`);
  const work = await mkdtemp(join(output, ".checkpoint-")).catch(refused);
  await using temporary = new AsyncDisposableStack();
  temporary.defer(() => rm(work, { recursive: true, force: true }));
  await save(work);
  const images = join(work, layout.images);
  const files: PodDump["files"] = {};
  for (const name of (await readdir(images)).sort())
    files[`${layout.images}/${name}`] = await sealed(join(images, name), signal);
  const dump = join(work, layout.pod);
  await writeFile(dump, JSON.stringify({ ...about, files } satisfies PodDump), { mode: 0o600, flush: true });
  signal.throwIfAborted();
  undo.defer(() => rm(join(output, layout.images), { recursive: true, force: true }));
  await rename(images, join(output, layout.images));
  await rename(dump, join(output, layout.pod));
  undo.move();
};

/** Puts a file on the disk, for root alone; its size and digest. */
const sealed = async (path: string, signal: AbortSignal): Promise<{ size: number; sha256: string }> => {
  await using file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW);
  await file.chmod(0o600);
  const { size } = await file.stat();
  const hash = createHash("sha256");
  for await (const chunk of chunksOf(file, size, signal)) hash.update(chunk);
  await file.sync();
  return { size, sha256: hash.digest("hex") };
};
