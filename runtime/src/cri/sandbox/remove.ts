import { create } from "@bufbuild/protobuf";
import { RemovePodSandboxResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { removeContainerById } from "../container/remove.ts";
import { notify } from "../notify.ts";
import { cleanup, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { removePod } from "./release.ts";
import { stopPod } from "./stop.ts";

/** RemovePodSandbox: stops the pod, removes its containers, then itself. Succeeds for a pod that is gone. */
export const removePodSandbox =
  (runtime: Runtime): RuntimeMethods["removePodSandbox"] =>
  async (request, signal) => {
    const pod = runtime.pods.find(request.podSandboxId);
    if (pod)
      await runtime.locks.run(pod.id, signal, async () => {
        await stopPod(runtime, pod, signal);
        await Promise.all(
          runtime.containers
            .list()
            .filter((container) => container.podId === pod.id)
            .map((container) => removeContainerById(runtime, container.id, signal)),
        );
        const now = runtime.pods.get(pod.id);
        if (now === undefined) return;
        await removePod(runtime, now, cleanup());
        runtime.sampler.forget(pod.id);
        notify(runtime, "deleted", pod.id, pod.id);
      });
    return create(RemovePodSandboxResponseSchema);
  };
