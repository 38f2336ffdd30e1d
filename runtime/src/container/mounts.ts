import { stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { type Mount, MountPropagation } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Images } from "../image/images.ts";
import type { Linux } from "../linux/linux.ts";
import type { Owners, Snapshotter } from "../snapshot/snapshotter.ts";
import type { ResolvedMount } from "../spec/mounts.ts";
import { idMappings } from "../spec/user-namespace.ts";
import { hostSource } from "./mount-source.ts";
import { type MountPoint, mountOf, readMountTable } from "./mount-table.ts";
import { resolveInRoot } from "./rootfs.ts";

type Needs = {
  images: Pick<Images, "get">;
  snapshotter: Pick<Snapshotter, "mountReadonly">;
  /** The handler can make a whole tree read-only. */
  recursiveReadOnly: boolean;
  /** A directory for the n-th image volume, to be mounted on; noted in the record by the caller. */
  imageMountDir: (index: number) => Promise<string>;
  linux: Pick<Linux, "canIdMap">;
  /** Path of bulkhead-exec-reaper. */
  looker: string;
  /** The pod's user namespace, and whose root files of images belong to there. */
  owners: Owners | undefined;
  /** The SELinux label of the container's files. */
  label: string | undefined;
  /** Gives what is at a path of the node that label. */
  relabel: (source: string) => Promise<void>;
};

const propagations = {
  [MountPropagation.PROPAGATION_PRIVATE]: "private",
  [MountPropagation.PROPAGATION_HOST_TO_CONTAINER]: "host-to-container",
  [MountPropagation.PROPAGATION_BIDIRECTIONAL]: "bidirectional",
} as const;

/** Flags of mount(8) that a pod may add to a volume; anything else could undo what the volume was given. */
const allowedOptions = new Set(["noexec", "nosuid", "nodev", "noatime", "nodiratime", "relatime"]);

/** Finds the source of each mount on the node: symbolic links followed, missing directories made, images mounted. */
export const resolveMounts = async (
  mounts: readonly Mount[],
  needs: Needs,
  signal: AbortSignal,
): Promise<ResolvedMount[]> => {
  const table = mounts.some((mount) => mount.propagation !== MountPropagation.PROPAGATION_PRIVATE)
    ? await readMountTable()
    : [];
  return await Promise.all(
    mounts.map(async (mount, index): Promise<ResolvedMount> => {
      check(mount, needs);
      const propagation = propagations[mount.propagation];
      const source = mount.image?.image
        ? await imageSource(mount, index, needs)
        : await hostSource(mount.hostPath, needs.looker, signal);
      if (mount.selinuxRelabel && !mount.image?.image) await needs.relabel(source);
      checkPropagation(table, source, propagation);
      const ids = idsOf(mount, source, needs);
      return {
        destination: join("/", mount.containerPath),
        source,
        readonly: mount.readonly || (mount.image?.image ?? "") !== "",
        recursiveReadOnly: mount.recursiveReadOnly,
        propagation,
        options: mount.mountOptions,
        ...(ids && { ids }),
      };
    }),
  );
};

const check = (mount: Mount, needs: Needs): void => {
  const what = `Cannot mount at "${mount.containerPath}"`;
  if (mount.containerPath === "")
    throw new RuntimeError("invalid-argument", "Cannot mount: no container path");
  if (mount.recursiveReadOnly) {
    if (!mount.readonly)
      throw new RuntimeError("invalid-argument", `${what}: recursive read-only needs read-only`);
    if (mount.propagation !== MountPropagation.PROPAGATION_PRIVATE)
      throw new RuntimeError("invalid-argument", `${what}: recursive read-only needs private propagation`);
    // kubelet matches the beginning of the message and needs the code Unknown to see it (facts: RROUnsupported).
    if (!needs.recursiveReadOnly)
      throw new RuntimeError(
        "unknown",
        `RROUnsupported: ${what}: the handler has no recursive read-only mounts`,
      );
  }
  for (const option of mount.mountOptions)
    if (!allowedOptions.has(option))
      throw new RuntimeError("invalid-argument", `${what}: mount option "${option}" is not allowed`);
};

/** The mappings of an id-mapped mount, where the file system can be mounted so. */
const idsOf = (mount: Mount, source: string, { owners, linux }: Needs): ResolvedMount["ids"] => {
  const what = `Cannot mount at "${mount.containerPath}"`;
  const uids = idMappings(mount.uidMappings, `uidMappings of the mount at "${mount.containerPath}"`);
  const gids = idMappings(mount.gidMappings, `gidMappings of the mount at "${mount.containerPath}"`);
  if (uids.length === 0 && gids.length === 0) return undefined;
  if (uids.length === 0 || gids.length === 0)
    throw new RuntimeError("invalid-argument", `${what}: an id-mapped mount needs both uids and gids`);
  // An image's files are shifted where its layers are stacked.
  if (mount.image?.image) return undefined;
  if (owners !== undefined && !linux.canIdMap(source, owners.userNamespace))
    throw new RuntimeError(
      "failed-precondition",
      `${what}: the file system of "${source}" cannot be mounted id-mapped by this kernel`,
    );
  return { uids, gids };
};

const imageSource = async (mount: Mount, index: number, needs: Needs): Promise<string> => {
  const ref = mount.image?.image ?? "";
  try {
    const image = needs.images.get(ref);
    if (!image) throw new Error(`image "${ref}" is not there`);
    const dir = await needs.imageMountDir(index);
    await needs.snapshotter.mountReadonly(`${basename(dirname(dir))}-${basename(dir)}`, image.layers, dir, {
      owners: needs.owners,
      label: needs.label,
    });
    if (mount.imageSubPath === "") return dir;
    const found = await resolveInRoot(dir, mount.imageSubPath);
    if (!(await stat(found)).isDirectory()) throw new Error(`"${mount.imageSubPath}" is not a directory`);
    return found;
  } catch (error) {
    throw new RuntimeError(
      "unknown",
      `ImageVolumeMountFailed: Cannot mount image "${ref}": ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
};

const checkPropagation = (
  table: readonly MountPoint[],
  source: string,
  propagation: ResolvedMount["propagation"],
): void => {
  if (propagation === "private") return;
  const mount = mountOf(table, source);
  if (mount?.shared) return;
  if (propagation === "host-to-container" && mount?.slave) return;
  const needed = propagation === "bidirectional" ? "shared" : "shared or slave";
  throw new RuntimeError(
    "invalid-argument",
    `Cannot propagate mounts of "${source}": it stands on "${mount?.path ?? "/"}", which is not a ${needed} mount`,
  );
};
