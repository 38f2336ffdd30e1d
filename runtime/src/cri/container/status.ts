import { create } from "@bufbuild/protobuf";
import { ContainerStatusResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { containerCodec } from "../../container/store.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { pidIn } from "./create.ts";
import { containerStatusMessage } from "./messages.ts";
import { requireVisible } from "./visible.ts";

/** ContainerStatus, from memory. */
export const containerStatus =
  (runtime: Runtime): RuntimeMethods["containerStatus"] =>
  async (request) => {
    const container = requireVisible(runtime, request.containerId);
    const pid = pidIn(container.handlerState);
    return create(ContainerStatusResponseSchema, {
      status: containerStatusMessage(container, runtime.images),
      info: request.verbose
        ? {
            info: JSON.stringify({
              sandboxID: container.podId,
              ...(pid !== undefined && { pid }),
              record: containerCodec.encode(container),
            }),
          }
        : {},
    });
  };
