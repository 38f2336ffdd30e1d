import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type Taken, takeArchive, takeDirectory } from "../../checkpoint/read.ts";
import type { Handler, MemoryImage } from "../../handler/handler.ts";
import type { Image } from "../../image/images.ts";
import type { Pod } from "../../pod/state.ts";
import type { Runtime } from "../runtime.ts";

/** Annotation of a pod whose first container may be one from a checkpoint. */
export const restoreAnnotation = "bulkhead.dev/restore";

/** Where what was taken from a checkpoint lies until its container has started. */
export const restoreDir = (runtime: Pick<Runtime, "restoreRoot">, id: string): string =>
  join(runtime.restoreRoot, id);

/** Takes away what a restore left, whether it came to its end or not. */
export const forgetRestore = (runtime: Pick<Runtime, "restoreRoot">, id: string): Promise<void> =>
  rm(restoreDir(runtime, id), { recursive: true, force: true });

/**
 * True when a request's image is a checkpoint: an image that says so of itself, or the path of an archive on the node.
 * Only who holds the CRI socket can name a path: kubelet takes none for an image.
 */
export const isCheckpoint = (ref: string, image: Image | undefined): boolean =>
  ref.startsWith("/") || image?.isCheckpoint === true;

/** Throws, in words, where nothing could come of a restore. */
export const requireRestorable = (ref: string, pod: Pod, handler: Handler): void => {
  const refuse = (code: "unimplemented" | "failed-precondition", why: string): never => {
    throw new RuntimeError(code, `Cannot restore from "${ref}": ${why}`);
  };
  if (handler.kind === "oci") {
    if (handler.restores === undefined)
      refuse(
        "failed-precondition",
        `who can have a checkpoint restored under handler "${pod.handler.name}" has the node, so that its administrator must allow it: restoreCheckpoints: true of the handler does that`,
      );
    if (pod.held.namespaces?.user !== undefined)
      refuse(
        "failed-precondition",
        "CRIU's processes cannot come into a pod with a user namespace of its own",
      );
    return;
  }
  if (handler.restores === undefined)
    refuse(
      "unimplemented",
      `handler "${pod.handler.name}" restores nothing; gVisor's handlers and runc's do`,
    );
  if (pod.config.annotations[restoreAnnotation] !== "true")
    refuse(
      "failed-precondition",
      `gVisor restores a pod as a whole, before anything runs in it: the pod needs the annotation ${restoreAnnotation}: "true"`,
    );
};

/**
 * Takes a checkpoint's memory image for container `id`, and finds the image that its root file system is made of:
 * one that is here, by its ID alone. No name in an archive means anything (CVE-2026-50195).
 */
export const takeCheckpoint = async (
  runtime: Runtime,
  { id, ref, image, kind }: { id: string; ref: string; image: Image | undefined; kind: MemoryImage },
  signal: AbortSignal,
): Promise<SavedContainer> => {
  const into = restoreDir(runtime, id);
  await using undo = new AsyncDisposableStack();
  undo.defer(() => forgetRestore(runtime, id));
  await mkdir(into, { recursive: true, mode: 0o700 });
  const taken = await (image === undefined
    ? takeArchive(ref, into, kind, signal)
    : takeImage(runtime, { id, image, kind }, into, signal)
  ).catch((error: unknown) => {
    if (!(error instanceof RuntimeError)) throw error;
    throw new RuntimeError(error.code, `Cannot restore from "${ref}": ${error.message}`, { cause: error });
  });
  const base = runtime.images.get(taken.config.rootfsImageRef);
  if (base === undefined || base.isArtifact || base.isCheckpoint)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot restore from "${ref}": image ${taken.config.rootfsImageRef}, which the container ran, is not on this node`,
    );
  undo.move();
  return { ...taken, base };
};

/** What is taken of a checkpoint, and the image that its root file system is made of. */
export type SavedContainer = Omit<Taken, "config"> & { base: Image };

const takeImage = async (
  { snapshotter }: Pick<Runtime, "snapshotter">,
  { id, image, kind }: { id: string; image: Image; kind: MemoryImage },
  into: string,
  signal: AbortSignal,
): Promise<Taken> => {
  const key = `${id}-checkpoint`;
  const mounted = join(into, "mounted");
  await mkdir(mounted, { mode: 0o700 });
  await using undo = new AsyncDisposableStack();
  undo.defer(() => snapshotter.removeContainer(key));
  undo.defer(() => snapshotter.unmount(mounted));
  await snapshotter.mountReadonly(key, image.layers, mounted);
  return await takeDirectory(mounted, into, kind, AbortSignal.any([signal, AbortSignal.timeout(600_000)]));
};
