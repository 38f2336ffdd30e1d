import * as z from "zod";
import type { HandlerState } from "../handler.ts";

const Pid = z.object({ pid: z.number().int().positive(), startTime: z.string().regex(/^\d+$/) });

/** What must be found again of a container after a restart of the daemon. */
const ContainerState = z.object({
  process: Pid,
  monitor: Pid,
  cgroup: z.record(z.string(), z.string()),
  /** OOM kills in the pod's cgroup before there was this container. */
  killsBefore: z.number().int().optional(),
});

/** A container that the runtime refused to create, in its own words: start is where they are told. */
const Refused = z.object({ refused: z.string() });

/** A container that goes on from the memory image in this directory once it starts. */
const Awaiting = z.object({ restoreFrom: z.string() });

/** What must be found again of a pod. */
const SandboxState = z.object({
  /** Path of the network namespace, "" for the host's. */
  netns: z.string(),
  /** Directories of the pod's cgroup, {} when it has none of its own. */
  cgroup: z.record(z.string(), z.string()),
  /** First process of the shared PID namespace. */
  holder: Pid.optional(),
  /** The same as `holder.pid`, for those who need no more than the number. */
  pid: z.number().optional(),
  /** The PID namespace pinned by a bind mount; stays the right one when the number is used again. */
  pidNamespace: z.string().optional(),
});

export type ContainerState = z.infer<typeof ContainerState>;
export type SandboxState = z.infer<typeof SandboxState>;

/** undefined: the record was written before `create` was through. */
export const parseContainerState = (state: HandlerState): ContainerState | undefined =>
  ContainerState.safeParse(state).data;

/** Why there is no process, where the runtime refused to make one. */
export const refusalOf = (state: HandlerState): string | undefined => Refused.safeParse(state).data?.refused;

/** Where the memory image lies, of a container that waits to go on from one. */
export const awaitedImage = (state: HandlerState): string | undefined =>
  Awaiting.safeParse(state).data?.restoreFrom;

export const parseSandboxState = (state: HandlerState): SandboxState =>
  SandboxState.safeParse(state).data ?? { netns: "", cgroup: {} };

export const fromRecord = ({ pid, startTime }: z.infer<typeof Pid>) => ({
  pid,
  startTime: BigInt(startTime),
});
export const toRecord = ({ pid, startTime }: { pid: number; startTime: bigint }) => ({
  pid,
  startTime: String(startTime),
});
