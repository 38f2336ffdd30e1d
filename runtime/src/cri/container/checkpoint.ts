import { isAbsolute } from "node:path";
import { create } from "@bufbuild/protobuf";
import { CheckpointContainerResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { writeDumps } from "../../checkpoint/dump.ts";
import { writeArchive } from "../../checkpoint/write.ts";
import { requireRunning } from "../../container/state.ts";
import { containerRef, now, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { pidIn } from "./create.ts";
import { requireVisible } from "./visible.ts";

/** setTimeout's longest wait. */
const maxTimeout = 2 ** 31 - 1;

/**
 * CheckpointContainer: a tar archive at `location`, for root alone, in the layout of CRI-O's and containerd's
 * (checkpoint/layout.ts). The container goes on. An archive is whole or not there.
 */
export const checkpointContainer =
  (runtime: Runtime): RuntimeMethods["checkpointContainer"] =>
  async ({ containerId, location, timeout }, signal) => {
    const { id } = requireVisible(runtime, containerId);
    const refused = (
      code: "invalid-argument" | "failed-precondition",
      why: string,
      cause?: unknown,
    ): never => {
      throw new RuntimeError(code, `Cannot checkpoint container "${id}": ${why}`, { cause });
    };
    if (!isAbsolute(location) || location.includes("\0"))
      refused("invalid-argument", `its location "${location}" is not an absolute path`);
    const limit = Number(timeout) > 0 ? Math.min(Number(timeout) * 1000, maxTimeout) : 300_000;
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(limit)]);
    await runtime.locks.run(id, deadline, async () => {
      const container = runtime.containers.require(id);
      requireRunning(container, "checkpoint");
      const pod = runtime.pods.require(container.podId);
      const handler = runtime.handlers.running(pod.handler);
      const ref = containerRef(runtime, pod, container);
      const { checkpoint } = handler;
      if (checkpoint === undefined)
        return refused("failed-precondition", `handler "${pod.handler.name}" saves no containers`);
      await writeArchive(
        location,
        async (directory) => {
          const at = now();
          const saveRoot = (file: string) => runtime.snapshotter.saveChanges(id, file, deadline);
          await checkpoint(ref, directory, saveRoot, deadline);
          await writeDumps(directory, container, {
            handler: pod.handler.name,
            imageName: container.config.image?.userSpecifiedImage || container.config.image?.image || "",
            at,
            pid: pidIn(container.handlerState),
          });
        },
        deadline,
      ).catch((error: unknown) => {
        if (error instanceof RuntimeError && error.code === "failed-precondition")
          refused("failed-precondition", error.message, error);
        throw error;
      });
    });
    return create(CheckpointContainerResponseSchema);
  };
