import { join } from "node:path";
import type { CriServices } from "@bulkhead/lib/cri/client.ts";
import { wallClock } from "@bulkhead/lib/std/wall-clock.ts";
import type { Logger } from "pino";
import type { Exits } from "../container/exits.ts";
import type { Container, Visible } from "../container/state.ts";
import type { ContainerStore } from "../container/store.ts";
import type { Handler, SandboxRef } from "../handler/handler.ts";
import type { Handlers } from "../handlers/handlers.ts";
import type { SingleFlight } from "../image/single-flight.ts";
import type { ImageStore } from "../image/store.ts";
import type { Linux } from "../linux/linux.ts";
import type { Metrics } from "../metrics.ts";
import type { Network } from "../network/network.ts";
import type { Pod } from "../pod/state.ts";
import type { PodStore } from "../pod/store.ts";
import type { Activity } from "../record/activity.ts";
import type { Locks } from "../record/lock.ts";
import type { Disks } from "../snapshot/disks.ts";
import type { Snapshotter } from "../snapshot/snapshotter.ts";
import type { HostFacts } from "../spec/host.ts";
import type { StreamingServer } from "../streaming/streaming.ts";
import type { Events } from "./events.ts";
import type { Former } from "./former.ts";
import type { Sampler } from "./sampler.ts";

/** Everything an RPC may need. One value, made in serve.ts; each function below takes what it uses of it. */
export type Runtime = {
  version: string;
  /** What is valid until reboot. */
  stateDir: string;
  /** On disk, for root alone: what was taken from checkpoints, until it runs. */
  restoreRoot: string;
  host: HostFacts;
  linux: Linux;
  network: Network;
  snapshotter: Snapshotter;
  disks: Disks;
  images: ImageStore;
  handlers: Handlers;
  pods: PodStore;
  containers: ContainerStore;
  /** RunPodSandbox and CreateContainer under way, by name: a retry joins. */
  starting: SingleFlight<string>;
  /** One change at a time per pod or container. */
  locks: Locks;
  /** CreateContainer and StartContainer under way, by pod. */
  activity: Activity;
  /** Pods that could not be taken up yet, for what holds them lives and does not answer. */
  silentPods: Set<string>;
  former: Former;
  exits: Exits;
  events: Events;
  sampler: Sampler;
  streaming: StreamingServer;
  metrics: Metrics;
  log: Logger;
  /** The AppArmor profile of containers that ask for no other; undefined where there is none. */
  defaultApparmor: string | undefined;
  /** Path of bulkhead-exec-reaper, which also makes user namespaces and looks for mount sources. */
  reaper: string;
  /** Why this node's pods cannot have user namespaces; undefined when they can. */
  noUserNamespaces: string | undefined;
  config: { verbose: () => Record<string, unknown> };
};

export type RuntimeMethods = CriServices["runtime"];
export type ImageMethods = CriServices["image"];

/** Undoing has time of its own, whatever happened to the call that made it necessary. */
export const cleanup = (): AbortSignal => AbortSignal.timeout(30_000);

export const now = (): bigint => BigInt(Math.round(wallClock() * 1e6));

export const podDir = (runtime: Pick<Runtime, "stateDir">, id: string): string =>
  join(runtime.stateDir, "pods", id);
export const containerDir = (runtime: Pick<Runtime, "stateDir">, id: string): string =>
  join(runtime.stateDir, "containers", id);

/** How a handler finds a pod again. */
export const sandboxRef = (runtime: Pick<Runtime, "stateDir">, pod: Pod): SandboxRef => ({
  id: pod.id,
  stateDir: join(podDir(runtime, pod.id), "sandbox"),
  state: pod.held.sandbox?.state ?? {},
});

/** How a handler finds a container again. */
export const containerRef = (runtime: Pick<Runtime, "stateDir">, pod: Pod, container: Container) => ({
  id: container.id,
  sandbox: sandboxRef(runtime, pod),
  stateDir: containerDir(runtime, container.id),
  state: container.state === "creating" ? {} : container.handlerState,
  tty: container.config.tty,
  stdin: container.config.stdin,
  stdinOnce: container.config.stdinOnce,
  logPath: container.logPath,
});

/** A container that others can see, with its pod and the handler that it runs under. */
export const findContainer = (
  runtime: Pick<Runtime, "pods" | "containers" | "handlers" | "stateDir">,
  id: string,
): { container: Visible; pod: Pod; handler: Handler } | undefined => {
  const container = runtime.containers.find(id);
  if (container === undefined || container.state === "creating") return undefined;
  const pod = runtime.pods.require(container.podId);
  return { container, pod, handler: runtime.handlers.running(pod.handler) };
};
