import { constants } from "node:fs";
import { chmod, mkdtemp, open, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { create, toJson } from "@bufbuild/protobuf";
import { CheckpointContainerResponseSchema, ContainerConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { pack } from "tar-stream";
import { requireRunning } from "../../container/state.ts";
import { containerDir, containerRef, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

/** setTimeout's longest wait. */
const maxTimeout = 2 ** 31 - 1;

/**
 * CheckpointContainer: a tar archive at `location` with the processes' images (checkpoint/), the specification
 * (spec.dump) and the container's configuration (config.dump). For looking into: the writable layer is not in it, and
 * no container is made from an archive, because an archive is another's word about mounts and devices.
 */
export const checkpointContainer =
  (runtime: Runtime): RuntimeMethods["checkpointContainer"] =>
  async ({ containerId, location, timeout }, signal) => {
    const container = requireVisible(runtime, containerId);
    requireRunning(container, "checkpoint");
    const pod = runtime.pods.require(container.podId);
    const handler = runtime.handlers.running(pod.handler);
    if (!isAbsolute(location) || location.includes("\0"))
      throw new RuntimeError(
        "invalid-argument",
        `Cannot checkpoint container "${container.id}": its location "${location}" is not an absolute path`,
      );
    if (handler.checkpoint === undefined)
      throw new RuntimeError(
        "failed-precondition",
        `Cannot checkpoint container "${container.id}": handler "${pod.handler.name}" cannot checkpoint one container of a pod`,
      );
    const checkpoint = handler.checkpoint;
    const limit = Number(timeout) > 0 ? Math.min(Number(timeout) * 1000, maxTimeout) : 300_000;
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(limit)]);
    await runtime.locks.run(container.id, deadline, async () => {
      await using undo = new AsyncDisposableStack();
      const dir = await mkdtemp(join(dirname(location), ".checkpoint-")).catch((error) => {
        throw new RuntimeError(
          "failed-precondition",
          `Cannot checkpoint container "${container.id}" to "${location}": ${messageOf(error)}`,
          { cause: error },
        );
      });
      undo.defer(() => rm(dir, { recursive: true, force: true }));
      await chmod(dir, 0o700);
      await checkpoint(containerRef(runtime, pod, container), dir, deadline);
      const config = toJson(ContainerConfigSchema, container.config);
      const about = { id: container.id, image: container.imageId, runtime: pod.handler.name, config };
      await writeFile(join(dir, "config.dump"), JSON.stringify(about));
      const spec = join(containerDir(runtime, container.id), "config.json");
      const archive = join(dir, "archive.tar");
      await writeArchive(archive, dir, spec, deadline);
      await rename(archive, location);
    });
    return create(CheckpointContainerResponseSchema);
  };

/** Regular files of `dir` and the specification as one tar archive, for root alone. */
const writeArchive = async (
  archive: string,
  dir: string,
  spec: string,
  signal: AbortSignal,
): Promise<void> => {
  const images = join(dir, "checkpoint");
  const files = [
    { name: "config.dump", path: join(dir, "config.dump") },
    { name: "spec.dump", path: spec },
    ...(await readdir(images))
      .sort()
      .map((name) => ({ name: `checkpoint/${name}`, path: join(images, name) })),
  ];
  const tar = pack();
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const target = await open(archive, flags, 0o600);
  const written = pipeline(tar, target.createWriteStream(), { signal });
  written.catch(() => {});
  for (const { name, path } of files) {
    const { size } = await stat(path);
    const source = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    await pipeline(source.createReadStream(), tar.entry({ name, size, mode: 0o600 }), { signal });
  }
  tar.finalize();
  await written;
};
