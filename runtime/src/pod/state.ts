import { clone, create } from "@bufbuild/protobuf";
import type { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import {
  type LinuxContainerResources,
  LinuxPodSandboxConfigSchema,
  type PodSandboxConfig,
  PodSandboxConfigSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { HandlerState, Namespaces } from "../handler/handler.ts";
import type { NetworkResult } from "../network/network.ts";

/**
 * What a pod holds on the node. Each part is noted before it is acquired, so that whoever comes after a crash
 * knows what to give back.
 */
export type Held = {
  /** Namespaces, as far as they were made; {} while they are being made. */
  namespaces?: Namespaces;
  /** CNI ADD was begun; the result once it is known. */
  network?: { result?: NetworkResult };
  /** The handler's sandbox was begun; its state once it runs. */
  sandbox?: { state: HandlerState };
  /** The shared /dev/shm is mounted. */
  shm?: boolean;
};

type Identity = {
  readonly id: string;
  /** Unix nanoseconds. */
  readonly createdAt: bigint;
  readonly config: PodSandboxConfig;
  /** As kubelet named it, "" for the default. */
  readonly runtimeHandler: string;
  /** The handler that the pod was started with; its file may change or go meanwhile. */
  readonly handler: HandlerConfig;
  readonly hostname: string;
  /** The SELinux level of its containers that ask for none; undefined where nothing is labelled. */
  readonly selinuxLevel?: string;
};

/**
 * creating ──▶ ready ──▶ stopping ──▶ stopped
 *     │          │           ▲           │
 *     │          ▼           │           └──▶ (removed)
 *     └──────▶ lost ─────────┘
 *
 * creating: RunPodSandbox works on it. ready: containers may come. lost: it failed half-way, or its holder died;
 * what it holds waits for StopPodSandbox. stopping: nothing new, everything is being given back. stopped: holds
 * its record and the handler's files, which containers need until they are removed.
 */
export type Pod = Identity &
  (
    | { readonly state: "creating"; readonly held: Held }
    | { readonly state: "ready"; readonly held: Held }
    | { readonly state: "lost"; readonly held: Held; readonly reason: string }
    | { readonly state: "stopping"; readonly held: Held }
    | {
        readonly state: "stopped";
        readonly held: { sandbox?: NonNullable<Held["sandbox"]> } & Partial<
          Record<Exclude<keyof Held, "sandbox">, never>
        >;
      }
  );

export const newPod = (identity: Identity): Pod => ({ ...identity, state: "creating", held: {} });

/** Notes something that the pod holds, or no longer holds. */
export const hold = (pod: Pod, part: { [K in keyof Held]?: Held[K] | undefined }): Pod => {
  if (pod.state === "stopped") throw wrongState(pod, "hold more");
  const held = Object.fromEntries(
    Object.entries({ ...pod.held, ...part }).filter(([, value]) => value !== undefined),
  ) as Held;
  return { ...pod, held };
};

export const ready = (pod: Pod): Pod => {
  if (pod.state !== "creating") throw wrongState(pod, "become ready");
  return { ...pod, state: "ready" };
};

/** The pod failed or its holder died. Does nothing to a pod that is going anyway. */
export const lost = (pod: Pod, reason: string): Pod =>
  pod.state === "creating" || pod.state === "ready" ? { ...pod, state: "lost", reason } : pod;

export const stopping = (pod: Pod): Pod =>
  pod.state === "stopped" || pod.state === "stopping"
    ? pod
    : { ...identityOf(pod), state: "stopping", held: pod.held };

export const stopped = (pod: Pod): Pod => ({
  ...identityOf(pod),
  state: "stopped",
  held: pod.held.sandbox ? { sandbox: pod.held.sandbox } : {},
});

const identityOf = ({
  id,
  createdAt,
  config,
  runtimeHandler,
  handler,
  hostname,
  selinuxLevel,
}: Pod): Identity => ({
  id,
  createdAt,
  config,
  runtimeHandler,
  handler,
  hostname,
  ...(selinuxLevel === undefined ? {} : { selinuxLevel }),
});

const wrongState = (pod: Pod, verb: string): RuntimeError =>
  new RuntimeError("failed-precondition", `Pod sandbox "${pod.id}" cannot ${verb}: it is ${pod.state}`);

/** Throws unless containers may be created in the pod. */
export const requireReady = (pod: Pod, verb: string): void => {
  if (pod.state !== "ready")
    throw new RuntimeError(
      "failed-precondition",
      `Cannot ${verb} in pod sandbox "${pod.id}": it is ${pod.state === "lost" ? `not ready (${pod.reason})` : pod.state}`,
    );
};

/** The pod's limits as kubelet has set them anew. */
export const withResources = (
  pod: Pod,
  overhead: LinuxContainerResources | undefined,
  resources: LinuxContainerResources | undefined,
): Pod => {
  const linux = clone(LinuxPodSandboxConfigSchema, pod.config.linux ?? create(LinuxPodSandboxConfigSchema));
  if (overhead) linux.overhead = overhead;
  if (resources) linux.resources = resources;
  const config = clone(PodSandboxConfigSchema, pod.config);
  config.linux = linux;
  return { ...pod, config };
};
