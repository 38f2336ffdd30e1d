import { lstat, stat, writeFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { type FoundPath, gvisorSpec, onlyItselfReadonly, pathsOf, type Submount } from "../spec/gvisor.ts";
import type { Mount, Spec } from "../spec/oci.ts";
import { type MountPoint, readMountTable } from "./mount-table.ts";
import { resolveInRoot } from "./rootfs.ts";

/** Every one costs the sandbox a file server: a volume with more of them stays read-only as a whole. */
const maxSubmounts = 32;

/** A container's specification for gVisor: what runsc leaves out is looked up on the node and said by mounts. */
export const specForGvisor = async (spec: Spec, stateDir: string): Promise<Spec> => {
  const emptyFile = join(stateDir, "empty");
  const [masked, readonly, table] = await Promise.all([
    findAll(spec, pathsOf(spec.linux?.maskedPaths)),
    findAll(spec, pathsOf(spec.linux?.readonlyPaths)),
    spec.mounts.some(onlyItselfReadonly) ? readMountTable() : [],
  ]);
  if (masked.some(({ kind }) => kind === "file")) await writeFile(emptyFile, "", { mode: 0o444 });
  return gvisorSpec(spec, { masked, readonly, emptyFile, submounts: submountsOf(spec.mounts, table) });
};

const findAll = async (spec: Spec, paths: readonly string[]): Promise<FoundPath[]> =>
  (await Promise.all([...new Set(paths)].map((path) => find(spec, path)))).filter(
    (found) => found !== undefined,
  );

const isBelow = (path: string, place: string): boolean =>
  path === place || path.startsWith(place === "/" ? "/" : `${place}/`);

/** Where a path of the container stands on the node; undefined where nothing is, or a file system of gVisor's own. */
const find = async (spec: Spec, path: string): Promise<FoundPath | undefined> => {
  const at = join("/", path).replace(/\/+$/, "") || "/";
  // The last one at a place covers those before it.
  const mount = spec.mounts.reduce<Mount | undefined>(
    (best, each) =>
      isBelow(at, each.destination) && each.destination.length >= (best?.destination.length ?? 0)
        ? each
        : best,
    undefined,
  );
  if (mount !== undefined && mount.type !== "bind") return undefined;
  const root = mount?.source ?? spec.root.path;
  const place = mount?.destination ?? "/";
  // A volume may be a file.
  const source = at === place ? root : await resolveInRoot(root, relative(place, at));
  const stats = await (at === place ? stat(source) : lstat(source)).catch(() => undefined);
  if (stats === undefined) return undefined;
  return {
    path: join(place, relative(root, source)),
    source,
    kind: stats.isDirectory() ? "directory" : "file",
  };
};

const submountsOf = (
  mounts: readonly Mount[],
  table: readonly MountPoint[],
): ReadonlyMap<string, readonly Submount[]> => {
  const found = new Map<string, readonly Submount[]>();
  for (const mount of mounts.filter(onlyItselfReadonly)) {
    const { source, destination } = mount;
    if (source === undefined) continue;
    const below = new Map(
      table
        .filter(({ path }) => path !== source && isBelow(path, source))
        .map(({ path, readonly }) => [
          path,
          { destination: join(destination, relative(source, path)), source: path, readonly },
        ]),
    );
    if (below.size > 0 && below.size <= maxSubmounts) found.set(destination, [...below.values()]);
  }
  return found;
};
