import { create } from "@bufbuild/protobuf";
import { PodSandboxStatusResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { isVisible } from "../../container/state.ts";
import { podCodec } from "../../pod/store.ts";
import { containerStatusMessage } from "../container/messages.ts";
import { now, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { podStatusMessage } from "./messages.ts";

/** PodSandboxStatus, with the statuses of its containers. */
export const podSandboxStatus =
  (runtime: Runtime): RuntimeMethods["podSandboxStatus"] =>
  async (request) => {
    const pod = runtime.pods.require(request.podSandboxId);
    if (pod.state === "creating")
      throw new RuntimeError(
        "not-found",
        `Cannot find pod sandbox "${request.podSandboxId}": it is being created`,
      );
    return create(PodSandboxStatusResponseSchema, {
      status: podStatusMessage(pod),
      info: request.verbose ? { info: JSON.stringify(podCodec.encode(pod)) } : {},
      containersStatuses: runtime.containers
        .list()
        .filter((container) => container.podId === pod.id)
        .filter(isVisible)
        .map((container) => containerStatusMessage(container, runtime.images)),
      timestamp: now(),
    });
  };
