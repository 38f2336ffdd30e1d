import { create } from "@bufbuild/protobuf";
import {
  ContainerSchema,
  ContainerState,
  type ContainerStatus,
  ContainerStatusSchema,
  type Container as Listed,
} from "@bulkhead/lib/gen/cri_pb.js";
import type { Visible } from "../../container/state.ts";
import type { Images } from "../../image/images.ts";
import { shownLogPath } from "../../spec/log-path.ts";
import { criStopSignal } from "../../spec/stop-signal.ts";
import { oncePerRecord } from "../once-per-record.ts";

const states = {
  created: ContainerState.CONTAINER_CREATED,
  running: ContainerState.CONTAINER_RUNNING,
  exited: ContainerState.CONTAINER_EXITED,
} as const satisfies Record<Visible["state"], ContainerState>;

export const containerState = (container: Visible): ContainerState => states[container.state];

/** A container as a list shows it. */
export const containerMessage = oncePerRecord(
  (container: Visible): Listed =>
    create(ContainerSchema, {
      id: container.id,
      podSandboxId: container.podId,
      ...(container.config.metadata && { metadata: container.config.metadata }),
      ...(container.config.image && { image: container.config.image }),
      imageRef: container.imageId,
      imageId: container.imageId,
      state: containerState(container),
      createdAt: container.createdAt,
      labels: container.config.labels,
      annotations: container.config.annotations,
    }),
);

/** A container as its status shows it. Mounts are those that kubelet asked for, nothing of our own. */
export const containerStatusMessage = (container: Visible, images: Pick<Images, "get">): ContainerStatus => {
  const image = images.get(container.imageId);
  const exit =
    container.state === "exited"
      ? {
          finishedAt: container.finishedAt,
          exitCode: container.exitCode,
          reason: container.reason,
          message: container.message,
        }
      : {};
  const resources = container.config.linux?.resources;
  return create(ContainerStatusSchema, {
    id: container.id,
    ...(container.config.metadata && { metadata: container.config.metadata }),
    state: containerState(container),
    createdAt: container.createdAt,
    startedAt: container.state === "created" ? 0n : container.startedAt,
    ...exit,
    image: {
      image:
        image?.repoTags[0] ||
        container.config.image?.userSpecifiedImage ||
        container.config.image?.image ||
        container.imageId,
      ...(container.config.image && { annotations: container.config.image.annotations }),
      userSpecifiedImage: container.config.image?.userSpecifiedImage ?? "",
    },
    imageRef: image?.repoDigests[0] ?? container.imageId,
    imageId: container.imageId,
    labels: container.config.labels,
    annotations: container.config.annotations,
    mounts: container.config.mounts,
    logPath: shownLogPath(container.logPath),
    ...(resources && { resources: { linux: resources } }),
    user: {
      linux: {
        uid: BigInt(container.user.uid),
        gid: BigInt(container.user.gid),
        supplementalGroups: container.user.groups.map(BigInt),
      },
    },
    stopSignal: criStopSignal(container.stopSignal),
  });
};
