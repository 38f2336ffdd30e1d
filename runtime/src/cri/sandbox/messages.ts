import { create } from "@bufbuild/protobuf";
import {
  type PodSandbox,
  PodSandboxSchema,
  PodSandboxState,
  type PodSandboxStatus,
  PodSandboxStatusSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import type { Pod } from "../../pod/state.ts";
import { oncePerRecord } from "../once-per-record.ts";

export const podState = (pod: Pod): PodSandboxState =>
  pod.state === "ready" ? PodSandboxState.SANDBOX_READY : PodSandboxState.SANDBOX_NOTREADY;

/** A pod as a list shows it. */
export const podMessage = oncePerRecord(
  (pod: Pod): PodSandbox =>
    create(PodSandboxSchema, {
      id: pod.id,
      ...(pod.config.metadata && { metadata: pod.config.metadata }),
      state: podState(pod),
      createdAt: pod.createdAt,
      labels: pod.config.labels,
      annotations: pod.config.annotations,
      runtimeHandler: pod.runtimeHandler,
    }),
);

/** A pod as its status shows it. Addresses are there while the pod is on the network. */
export const podStatusMessage = (pod: Pod): PodSandboxStatus => {
  const [ip = "", ...more] = pod.state === "ready" ? (pod.held.network?.result?.ips ?? []) : [];
  const options = pod.config.linux?.securityContext?.namespaceOptions;
  return create(PodSandboxStatusSchema, {
    id: pod.id,
    ...(pod.config.metadata && { metadata: pod.config.metadata }),
    state: podState(pod),
    createdAt: pod.createdAt,
    network: { ip, additionalIps: more.map((address) => ({ ip: address })) },
    linux: { namespaces: options ? { options } : { options: {} } },
    labels: pod.config.labels,
    annotations: pod.config.annotations,
    runtimeHandler: pod.runtimeHandler,
  });
};
