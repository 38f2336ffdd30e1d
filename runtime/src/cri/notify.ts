import { create } from "@bufbuild/protobuf";
import { ContainerEventResponseSchema, ContainerEventType } from "@bulkhead/lib/gen/cri_pb.js";
import { isVisible } from "../container/state.ts";
import { containerStatusMessage } from "./container/messages.ts";
import { isShown } from "./filter.ts";
import { now, type Runtime } from "./runtime.ts";
import { podStatusMessage } from "./sandbox/messages.ts";

type Kind = "created" | "started" | "stopped" | "deleted";

const types = {
  created: ContainerEventType.CONTAINER_CREATED_EVENT,
  started: ContainerEventType.CONTAINER_STARTED_EVENT,
  stopped: ContainerEventType.CONTAINER_STOPPED_EVENT,
  deleted: ContainerEventType.CONTAINER_DELETED_EVENT,
} as const satisfies Record<Kind, ContainerEventType>;

/** Tells listeners what happened to a container, or to a pod as if it were one, with the whole pod as it is now. */
export const notify = (
  runtime: Pick<Runtime, "events" | "pods" | "containers" | "images">,
  kind: Kind,
  id: string,
  podId: string,
): void => {
  if (!runtime.events.listened) return;
  const pod = runtime.pods.get(podId);
  if (!isShown(pod?.config, undefined)) return;
  runtime.events.send(
    create(ContainerEventResponseSchema, {
      containerId: id,
      containerEventType: types[kind],
      createdAt: now(),
      ...(pod && { podSandboxStatus: podStatusMessage(pod) }),
      containersStatuses: runtime.containers
        .list()
        .filter((container) => container.podId === podId)
        .filter(isVisible)
        .map((container) => containerStatusMessage(container, runtime.images)),
    }),
  );
};
