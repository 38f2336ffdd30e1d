import { create } from "@bufbuild/protobuf";
import { ReopenContainerLogResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { requireRunning } from "../../container/state.ts";
import { containerRef, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

/** ReopenContainerLog: returns when the new file is there. */
export const reopenContainerLog =
  (runtime: Runtime): RuntimeMethods["reopenContainerLog"] =>
  async (request, signal) => {
    const container = requireVisible(runtime, request.containerId);
    requireRunning(container, "reopen the log of");
    const pod = runtime.pods.require(container.podId);
    if (container.logPath !== "")
      await runtime.handlers.running(pod.handler).reopenLog(containerRef(runtime, pod, container), signal);
    return create(ReopenContainerLogResponseSchema);
  };
