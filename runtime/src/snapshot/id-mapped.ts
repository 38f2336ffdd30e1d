import { mkdir, readdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { type Linux, MountFlags } from "../linux/linux.ts";
import type { Owners } from "./snapshotter.ts";

/**
 * Lower directories of an overlay as a user namespace shall see them. An overlay cannot be id-mapped itself, but it
 * keeps copies of the mounts that its layers are on: so each layer is mounted id-mapped below `dir` for as long as
 * `use` takes to mount the overlay, and is gone from sight after that.
 */
export const withIdMapped = async (
  lower: string[],
  dir: string,
  owners: Owners | undefined,
  linux: Pick<Linux, "mountIdMapped" | "umount">,
  use: (lower: string[]) => Promise<void>,
): Promise<void> => {
  if (owners === undefined) return await use(lower);
  await using undo = new AsyncDisposableStack();
  const places: string[] = [];
  undo.defer(() => releaseIdMapped(dir, linux));
  for (const [index, source] of lower.entries()) {
    // Short, because mount(2) takes a page of options.
    const place = join(dir, index.toString(36));
    await mkdir(place, { recursive: true, mode: 0o700 });
    places.push(place);
    linux.mountIdMapped(source, owners.userNamespace, place);
  }
  await use(places);
};

/** Takes down what is mounted below `dir`, and `dir`: never by removing trees, for they are the layers themselves. */
export const releaseIdMapped = async (dir: string, linux: Pick<Linux, "umount">): Promise<void> => {
  for (const name of await readdir(dir).catch(() => [])) {
    const place = join(dir, name);
    await linux
      .umount(place, MountFlags.DETACH | MountFlags.NOFOLLOW)
      .catch((error: NodeJS.ErrnoException) => {
        // EINVAL: the mount itself had failed.
        if (error.code !== "EINVAL") throw error;
      });
    await rmdir(place);
  }
  await rmdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
  });
};
