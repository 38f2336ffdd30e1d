import { create } from "@bufbuild/protobuf";
import { ListContainersResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { isVisible } from "../../container/state.ts";
import { hasId, hasLabels, isShown } from "../filter.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { containerMessage, containerState } from "./messages.ts";

/** ListContainers, from memory. */
export const listContainers =
  (runtime: Pick<Runtime, "containers" | "pods">): RuntimeMethods["listContainers"] =>
  async ({ filter }) =>
    create(ListContainersResponseSchema, {
      containers: runtime.containers
        .list()
        .filter(isVisible)
        .filter(
          (container) =>
            isShown(runtime.pods.get(container.podId)?.config, filter) &&
            hasId(container.id, filter?.id) &&
            hasId(container.podId, filter?.podSandboxId) &&
            (filter?.state === undefined || filter.state.state === containerState(container)) &&
            hasLabels(container.config.labels, filter?.labelSelector),
        )
        .map(containerMessage),
    });
