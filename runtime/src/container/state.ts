import type { ContainerConfig } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Exit, HandlerState } from "../handler/handler.ts";
import type { Process, Resources } from "../spec/oci.ts";
import type { User } from "../spec/user.ts";

type Identity = {
  readonly id: string;
  readonly podId: string;
  /** Unix nanoseconds. */
  readonly createdAt: bigint;
  readonly config: ContainerConfig;
  /** Image ID that it was made from. */
  readonly imageId: string;
  /** Absolute, "" to discard. */
  readonly logPath: string;
  readonly stopSignal: number;
};

/** What is known once the container was prepared, and stays. */
type Made = {
  readonly handlerState: HandlerState;
  readonly user: User;
  /** What exec inherits: environment, directory, user, capabilities. */
  readonly process: Process;
  /** Places where images were mounted for it. */
  readonly imageMounts: readonly string[];
  /** Limits as last set, also by UpdateContainerResources. */
  readonly resources: Resources;
};

/**
 * creating ──▶ created ──▶ running ──▶ exited
 *                 │                      ▲
 *                 └──────────────────────┘
 *
 * creating: not shown to anybody; what a crash leaves of it is removed. created: the process exists and waits.
 * exited: for good; a start that failed ends here too (128, StartError), and so does a state that was lost
 * (255, Unknown).
 */
export type Container = Identity &
  (
    | { readonly state: "creating" }
    | ({ readonly state: "created" } & Made)
    | ({ readonly state: "running"; readonly startedAt: bigint } & Made)
    | ({
        readonly state: "exited";
        readonly startedAt: bigint;
        readonly finishedAt: bigint;
        readonly exitCode: number;
        readonly reason: ExitReason;
        readonly message: string;
      } & Made)
  );

/** The words that kubelet shows as terminated.reason. */
export type ExitReason = "Completed" | "Error" | "OOMKilled" | "StartError" | "Unknown";

/** A container that anybody but its maker can see. */
export type Visible = Exclude<Container, { state: "creating" }>;

export const isVisible = (container: Container): container is Visible => container.state !== "creating";

export const newContainer = (identity: Identity): Container => ({ ...identity, state: "creating" });

export const created = (container: Container, made: Made): Container => {
  if (container.state !== "creating") throw wrongState(container, "be created");
  return { ...container, ...made, state: "created" };
};

/**
 * An exit may overtake the answer to start: the container stays exited, with the time that it began, which was not after
 * its end. `handlerState` where the start changed it.
 */
export const started = (container: Container, at: bigint, handlerState?: HandlerState): Container => {
  switch (container.state) {
    case "created":
      return { ...container, ...(handlerState && { handlerState }), state: "running", startedAt: at };
    case "exited":
      return container.startedAt === 0n
        ? {
            ...container,
            ...(handlerState && { handlerState }),
            startedAt: earlier(at, container.finishedAt),
          }
        : container;
    default:
      throw wrongState(container, "be started");
  }
};

const earlier = (one: bigint, other: bigint): bigint => (one < other ? one : other);

/** The first exit counts; a later report changes nothing. */
export const exited = (container: Container, exit: Exit): Container => {
  switch (container.state) {
    case "creating":
    case "exited":
      return container;
    default:
      return {
        ...container,
        state: "exited",
        // What ends at once may have ended before start was answered, which is when we say that it began.
        startedAt: container.state === "running" ? earlier(container.startedAt, exit.finishedAt) : 0n,
        finishedAt: exit.finishedAt,
        exitCode: exit.code,
        reason: exit.oomKilled ? "OOMKilled" : exit.code === 0 ? "Completed" : "Error",
        message: "",
      };
  }
};

export const startFailed = (container: Container, at: bigint, message: string): Container =>
  ended(container, at, 128, "StartError", message);

export const stateLost = (container: Container, at: bigint, message: string): Container =>
  ended(container, at, 255, "Unknown", message);

const ended = (
  container: Container,
  at: bigint,
  exitCode: number,
  reason: ExitReason,
  message: string,
): Container => {
  if (container.state === "creating" || container.state === "exited") return container;
  return {
    ...container,
    state: "exited",
    startedAt: container.state === "running" ? container.startedAt : 0n,
    finishedAt: at,
    exitCode,
    reason,
    message,
  };
};

export const withResources = (
  container: Container,
  config: ContainerConfig,
  resources: Resources,
): Container => {
  if (container.state !== "created" && container.state !== "running")
    throw wrongState(container, "get new resources");
  return { ...container, config, resources };
};

const wrongState = (container: Container, verb: string): RuntimeError =>
  new RuntimeError(
    "failed-precondition",
    `Container "${container.id}" cannot ${verb}: it is ${container.state}`,
  );

/** Throws unless the container runs. */
export const requireRunning: (
  container: Container,
  verb: string,
) => asserts container is Extract<Container, { state: "running" }> = (container, verb) => {
  if (container.state !== "running")
    throw new RuntimeError(
      "failed-precondition",
      `Cannot ${verb} container "${container.id}": it is ${container.state}, not running`,
    );
};
