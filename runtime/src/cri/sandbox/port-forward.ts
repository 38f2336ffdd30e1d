import { create } from "@bufbuild/protobuf";
import { PortForwardResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { requireReady } from "../../pod/state.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";

/** PortForward: the URL of the streaming server. */
export const portForward =
  (runtime: Runtime): RuntimeMethods["portForward"] =>
  async (request) => {
    const pod = runtime.pods.require(request.podSandboxId);
    requireReady(pod, "forward a port");
    return create(PortForwardResponseSchema, {
      url: runtime.streaming.portForwardUrl({ podId: pod.id, ports: request.port }),
    });
  };
