import { mkdir, mkdtemp, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { type Linux, MountFlags } from "../linux/linux.ts";
import { createOwnedNamespaces } from "../network/user-namespace.ts";
import { withIdMapped } from "../snapshot/id-mapped.ts";

type Needs = {
  /** Where layers are. */
  root: string;
  /** Where root file systems are mounted. */
  state: string;
  /** bulkhead-exec-reaper. */
  program: string;
  linux: Pick<Linux, "mount" | "umount" | "mountIdMapped">;
};

/** Any range of ids: nothing runs with them. */
const range = [{ containerID: 0, hostID: 65_536, size: 65_536 }];

/**
 * Why pods cannot have user namespaces on this node; undefined when they can. Found out by doing what such a pod
 * needs: the namespace, and an overlay whose layers are on id-mapped mounts of the file system that they will be on.
 */
export const userNamespaceTrouble = async ({
  root,
  state,
  program,
  linux,
}: Needs): Promise<string | undefined> => {
  for (let dir = state; dir !== "/"; dir = dirname(dir))
    if (((await stat(dir)).mode & 0o001) === 0)
      return `${dir} does not let other users pass through, so that the root of a user namespace cannot reach its files`;
  await using undo = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(state, "userns-"));
  undo.defer(() => rm(scratch, { recursive: true, force: true }));
  const layers = await mkdtemp(join(root, "userns-"));
  undo.defer(() => rm(layers, { recursive: true, force: true }));
  const target = join(layers, "merged");
  await mkdir(target);
  await mkdir(join(layers, "a"));
  await mkdir(join(layers, "b"));
  try {
    undo.defer(() => linux.umount(join(scratch, "user"), MountFlags.DETACH).catch(() => {}));
    const ids = { uids: range, gids: range };
    const { user = "" } = await createOwnedNamespaces(
      scratch,
      [],
      "",
      ids,
      { program, linux },
      AbortSignal.timeout(10_000),
    );
    const owners = { userNamespace: user, uid: 65_536, gid: 65_536 };
    const dirs = [join(layers, "a"), join(layers, "b")];
    await withIdMapped(dirs, join(scratch, "shifted"), owners, linux, async (lower) => {
      await linux.mount("overlay", target, "overlay", MountFlags.RDONLY, `lowerdir=${lower.join(":")}`);
      undo.defer(() => linux.umount(target, MountFlags.DETACH));
    });
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
};
