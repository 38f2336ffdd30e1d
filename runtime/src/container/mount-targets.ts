import { lstat, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { resolveInRoot } from "./rootfs.ts";

/** What is mounted where, as in CRI's Mount. */
type Target = { hostPath: string; containerPath: string };

/**
 * Why one of the mounts cannot be made in this root file system, naming both its ends; undefined when all can. A
 * target below another mount is not looked at: what is there comes with that mount.
 */
export const blockedMount = async (root: string, mounts: readonly Target[]): Promise<string | undefined> => {
  for (const mount of mounts) {
    const place = join("/", mount.containerPath);
    const covered = mounts.some((other) => {
      const above = join("/", other.containerPath);
      return other !== mount && above !== place && place.startsWith(above === "/" ? "/" : `${above}/`);
    });
    const why = covered ? undefined : await blockedBy(root, place, mount.hostPath);
    if (why !== undefined) return `Cannot mount "${mount.hostPath}" at "${mount.containerPath}": ${why}`;
  }
  return undefined;
};

const blockedBy = async (root: string, place: string, source: string): Promise<string | undefined> => {
  // The nearest thing that is there decides whether the rest can be made.
  for (let path = place; path !== "/"; path = dirname(path)) {
    const found = await resolveInRoot(root, path);
    const there = await lstat(found).catch(() => undefined);
    if (there === undefined) continue;
    if (path !== place) return there.isDirectory() ? undefined : `"${path}" is not a directory`;
    const from = await stat(source).catch(() => undefined);
    if (from === undefined || from.isDirectory() === there.isDirectory()) return undefined;
    return from.isDirectory()
      ? "a directory cannot be mounted on a file"
      : "a file cannot be mounted on a directory";
  }
  return undefined;
};
