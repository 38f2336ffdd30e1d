import { readdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";

/** Where Kata's shim lays out what it shares with a guest. */
const shared = "/run/kata-containers/shared/sandboxes";

/**
 * The directories that Kata's shim leaves where no guest came up. By rmdir alone, which takes neither a file nor what is
 * mounted: were anything in them, it would be a volume.
 */
export function removeKataRemains(id: string, directory = shared): void {
  const own = join(directory, id);
  try {
    for (const name of readdirSync(own)) rmdirSync(join(own, name));
    rmdirSync(own);
  } catch {
    // It is not there, or more than empty directories.
  }
}
