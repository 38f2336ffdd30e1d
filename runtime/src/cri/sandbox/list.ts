import { create } from "@bufbuild/protobuf";
import { ListPodSandboxResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { hasId, hasLabels, isShown } from "../filter.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { podMessage, podState } from "./messages.ts";

/** ListPodSandbox, from memory. Pods under way are not there yet. */
export const listPodSandbox =
  (runtime: Pick<Runtime, "pods">): RuntimeMethods["listPodSandbox"] =>
  async ({ filter }) =>
    create(ListPodSandboxResponseSchema, {
      items: runtime.pods
        .list()
        .filter(
          (pod) =>
            pod.state !== "creating" &&
            isShown(pod.config, filter) &&
            hasId(pod.id, filter?.id) &&
            (filter?.state === undefined || filter.state.state === podState(pod)) &&
            hasLabels(pod.config.labels, filter?.labelSelector),
        )
        .map(podMessage),
    });
