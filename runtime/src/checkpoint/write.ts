import { constants } from "node:fs";
import { chmod, mkdir, mkdtemp, open, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type Pack, pack } from "tar-stream";
import { chunksOf } from "./chunks.ts";

/**
 * Makes the file `location`, for root alone, from what `fill` leaves in an empty directory beside it: a tar archive of
 * the regular files there. It is whole or it is not there; a file that was there is replaced.
 */
export const writeArchive = async (
  location: string,
  fill: (directory: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  const refused = (error: unknown): never => {
    throw new RuntimeError("failed-precondition", `Cannot write "${location}": ${messageOf(error)}`, {
      cause: error,
    });
  };
  await using undo = new AsyncDisposableStack();
  const work = await mkdtemp(join(dirname(location), ".checkpoint-")).catch(refused);
  undo.defer(() => rm(work, { recursive: true, force: true }));
  await chmod(work, 0o700);
  const content = join(work, "content");
  await mkdir(content, { mode: 0o700 });
  await fill(content);
  const archive = join(work, "archive.tar");
  await packDirectory(content, archive, signal);
  signal.throwIfAborted();
  await rename(archive, location).catch(refused);
};

const packDirectory = async (directory: string, archive: string, signal: AbortSignal): Promise<void> => {
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
  await using target = await open(archive, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  const tar = pack();
  const fill = async (): Promise<void> => {
    try {
      for (const name of await filesOf(directory)) await addFile(tar, directory, name, signal);
      tar.finalize();
    } catch (error) {
      tar.destroy(error instanceof Error ? error : new Error(String(error)));
    }
  };
  const filled = fill();
  try {
    for await (const chunk of tar) await target.writeFile(chunk as Buffer);
  } finally {
    tar.destroy();
    await filled;
  }
  await target.sync();
};

/** Relative paths; the small ones first, so that a reader knows soon what it has. */
const filesOf = async (directory: string): Promise<string[]> => {
  const found = await readdir(directory, { recursive: true, withFileTypes: true });
  const depth = (path: string): number => path.split("/").length;
  return found
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1))
    .sort((a, b) => depth(a) - depth(b) || (a < b ? -1 : 1));
};

const addFile = async (tar: Pack, directory: string, name: string, signal: AbortSignal): Promise<void> => {
  await using source = await open(join(directory, name), constants.O_RDONLY | constants.O_NOFOLLOW);
  const { size, mtime } = await source.stat();
  const pieces = Readable.from(chunksOf(source, size, signal), { objectMode: false });
  await pipeline(pieces, tar.entry({ name, size, mode: 0o600, mtime }));
};
