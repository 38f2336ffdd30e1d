import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { RemoveContainerResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { throwExhausted } from "../../linux/exhausted.ts";
import { notify } from "../notify.ts";
import { cleanup, containerDir, containerRef, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { endSilentPodOf } from "../take-up.ts";
import { killContainer } from "./kill.ts";
import { forgetRestore } from "./restore.ts";

/** RemoveContainer: kills it when it runs. Succeeds for a container that is gone. */
export const removeContainer =
  (runtime: Runtime): RuntimeMethods["removeContainer"] =>
  async (request, signal) => {
    const container = runtime.containers.find(request.containerId);
    if (container) {
      await endSilentPodOf(runtime, container.id, signal);
      await removeContainerById(runtime, container.id, signal);
    }
    return create(RemoveContainerResponseSchema);
  };

export const removeContainerById = (runtime: Runtime, id: string, signal: AbortSignal): Promise<void> =>
  runtime.locks.run(id, signal, async () => {
    const container = runtime.containers.get(id);
    if (container === undefined) return;
    await killContainer(runtime, id, signal);
    await discardContainer(runtime, id);
    runtime.sampler.forget(id);
    notify(runtime, "deleted", id, container.podId);
    const last = runtime.containers.list().every((other) => other.imageId !== container.imageId);
    // An image that was removed while this container stood on it can go now.
    if (last && runtime.images.get(container.imageId) === undefined)
      runtime.images.collect().catch((err) => runtime.log.warn({ err }, "unused layers were not removed"));
  });

/**
 * Removes a container's disk, unmounts its root and the images that are its volumes, and lets go of their layers. By what is there, not
 * by the record: a creation that failed half-way has noted nothing yet.
 */
export const releaseMounts = async (
  runtime: Pick<Runtime, "stateDir" | "snapshotter" | "disks">,
  id: string,
): Promise<void> => {
  const dir = containerDir(runtime, id);
  await runtime.snapshotter.unmount(join(dir, "rootfs"));
  for (const name of await readdir(dir).catch(nothingThere)) {
    if (!name.startsWith("image-")) continue;
    await runtime.snapshotter.unmount(join(dir, name));
    await runtime.snapshotter.removeContainer(`${id}-${name}`);
  }
  await runtime.snapshotter.removeContainer(id);
  await runtime.disks.remove(id);
};

const nothingThere = (error: unknown): string[] => {
  throwExhausted(error);
  return [];
};

/** Takes away everything of a container that does not run: the way down of create, remove and recovery. */
export const discardContainer = async (runtime: Runtime, id: string): Promise<void> => {
  const container = runtime.containers.get(id);
  const pod = container && runtime.pods.get(container.podId);
  if (container && pod)
    await runtime.handlers.running(pod.handler).remove(containerRef(runtime, pod, container), cleanup());
  const dir = containerDir(runtime, id);
  await releaseMounts(runtime, id);
  await forgetRestore(runtime, id);
  await rm(dir, { recursive: true, force: true });
  runtime.containers.delete(id);
};
