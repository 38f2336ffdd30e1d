import { renameSync, rmSync, writeFileSync } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";

/**
 * Replaces a file by rename: whoever reads it, or a kill -9, finds the old content or the new. Nothing is synced. When
 * it fails (a full disk), nothing is left of the try.
 */
export const replaceFile = async (path: string, text: string | Uint8Array, mode = 0o600): Promise<void> => {
  const fresh = `${path}.new`;
  try {
    await writeFile(fresh, text, { mode });
    await rename(fresh, path);
  } catch (error) {
    await rm(fresh, { force: true }).catch(() => {});
    throw error;
  }
};

/** {@link replaceFile} where nothing may come between a change in memory and its file. */
export const replaceFileSync = (path: string, text: string | Uint8Array, mode = 0o600): void => {
  const fresh = `${path}.new`;
  try {
    writeFileSync(fresh, text, { mode });
    renameSync(fresh, path);
  } catch (error) {
    try {
      rmSync(fresh, { force: true });
    } catch {
      // A disk that is read-only now keeps it.
    }
    throw error;
  }
};
