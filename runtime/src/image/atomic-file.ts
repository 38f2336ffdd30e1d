import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";

/** Replaces a file so that after a power cut there is either the old content or the new, and the new once this resolves. */
export const writeDurably = async (path: string, content: Uint8Array | string): Promise<void> => {
  const staged = `${path}.${randomUUID()}.tmp`;
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(staged, { force: true }));
  {
    await using file = await open(staged, "wx", 0o600);
    await file.writeFile(content);
    await file.datasync();
  }
  await rename(staged, path);
  await syncFolder(dirname(path));
};

/** Makes renames and removals in a folder survive a power cut. */
export const syncFolder = async (path: string): Promise<void> => {
  await using folder = await open(path, "r");
  await folder.sync();
};
