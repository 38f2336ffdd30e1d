import { create } from "@bufbuild/protobuf";
import { UpdatePodSandboxResourcesResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { requireReady, withResources } from "../../pod/state.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";

/**
 * UpdatePodSandboxResources: kubelet has set the pod's cgroup already; we keep the figures, which containers that
 * are created later pass on to their shims.
 */
export const updatePodSandboxResources =
  (runtime: Runtime): RuntimeMethods["updatePodSandboxResources"] =>
  async (request) => {
    const pod = runtime.pods.require(request.podSandboxId);
    requireReady(pod, "update resources");
    runtime.pods.update(pod.id, (each) => withResources(each, request.overhead, request.resources));
    return create(UpdatePodSandboxResourcesResponseSchema);
  };
