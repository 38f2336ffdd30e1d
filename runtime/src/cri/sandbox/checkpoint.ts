import { isAbsolute } from "node:path";
import { create } from "@bufbuild/protobuf";
import { CheckpointPodResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { rfc3339 } from "../../checkpoint/dump.ts";
import { writePod } from "../../checkpoint/write-pod.ts";
import { type Container, requireRunning } from "../../container/state.ts";
import { requireReady } from "../../pod/state.ts";
import { containerRef, now, type Runtime, type RuntimeMethods, sandboxRef } from "../runtime.ts";

/**
 * CheckpointPod: everything that runs in the pod, written below the directory `output_path`; the pod goes on. Handlers
 * whose pod is one thing save all of it: the named containers must be all that run (none named: all).
 */
export const checkpointPod =
  (runtime: Runtime): RuntimeMethods["checkpointPod"] =>
  async ({ podSandboxId, outputPath, containerIds, options }, signal) => {
    const { id } = runtime.pods.require(podSandboxId);
    const refuse = (
      code: "invalid-argument" | "failed-precondition" | "unimplemented",
      why: string,
      cause?: unknown,
    ): never => {
      throw new RuntimeError(code, `Cannot checkpoint pod "${id}": ${why}`, { cause });
    };
    if (!isAbsolute(outputPath) || outputPath.includes("\0"))
      refuse("invalid-argument", `its output path "${outputPath}" is not an absolute path`);
    const [option] = Object.keys(options);
    if (option !== undefined) refuse("invalid-argument", `there is no option "${option.slice(0, 64)}"`);
    await runtime.locks.run(id, signal, async () => {
      const pod = runtime.pods.require(id);
      requireReady(pod, "checkpoint");
      const { checkpointPod: save } = runtime.handlers.running(pod.handler);
      if (save === undefined)
        return refuse("unimplemented", `handler "${pod.handler.name}" saves no pods; gVisor's handlers do`);
      const running = containersOf(runtime, id).filter(({ state }) => state === "running");
      const containers =
        containerIds.length === 0 ? running : containerIds.map((each) => runtime.containers.require(each));
      const stranger = containers.find(({ podId }) => podId !== id);
      if (stranger) refuse("invalid-argument", `container "${stranger.id}" is not in it`);
      for (const container of containers) requireRunning(container, "checkpoint");
      if (containers.length === 0) refuse("failed-precondition", "no container runs in it");
      const about = {
        version: 1 as const,
        handler: pod.handler.name,
        checkpointedTime: rfc3339(now()),
        containers: containers.map(({ id: container, config, imageId }) => ({
          name: config.metadata?.name ?? "",
          id: container,
          rootfsImageRef: imageId,
          rootfsImageName: config.image?.userSpecifiedImage || config.image?.image || "",
        })),
      };
      const refs = containers.map((container) => containerRef(runtime, pod, container));
      await writePod(
        outputPath,
        about,
        (directory) => save(sandboxRef(runtime, pod), refs, directory, signal),
        signal,
      ).catch((error: unknown) => {
        if (error instanceof RuntimeError && error.code === "failed-precondition")
          refuse("failed-precondition", error.message, error);
        throw error;
      });
    });
    return create(CheckpointPodResponseSchema);
  };

export const containersOf = (runtime: Pick<Runtime, "containers">, podId: string): Container[] =>
  runtime.containers.list().filter((container) => container.podId === podId);
