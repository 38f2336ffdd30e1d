import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import type { HandlerState } from "../handler.ts";

/**
 * What finds a pod's shim and a container's things again after a restart. Returned as HandlerState, and in a file
 * of the state directory from the moment there is something to find: a daemon killed before its caller stored the
 * record finds it there.
 */
const ProcessState = z.object({ pid: z.int(), startTime: z.string() });

const CgroupsState = z.object({
  version: z.union([z.literal(1), z.literal(2)]),
  memory: z.string(),
  cpu: z.string(),
  pids: z.string(),
});

export const ShimState = z.object({
  address: z.string(),
  /** Of the task service, 2 or 3. */
  version: z.int(),
  /** ttrpc where nothing is said. */
  protocol: z.enum(["ttrpc", "grpc"]).optional(),
  shim: ProcessState.optional(),
  /** When the launch began, in clock ticks since boot: no process of the pod is older. */
  since: z.string().optional(),
  /** The holder's: its namespaces are the pod's. Not the shim's, which are the node's. */
  process: ProcessState.optional(),
  /** The pod was made by the sandbox API. */
  sandboxApi: z.boolean().optional(),
  /** False: the pod has no container of its own. */
  holder: z.boolean(),
  /** Pinned network namespace, "" for the host's. */
  netns: z.string(),
  cgroups: CgroupsState.optional(),
});
export type ShimState = z.infer<typeof ShimState>;

export const ContainerState = z.object({
  /** The process that the container lives in: its own, or the sandbox's. */
  process: ProcessState.optional(),
  /** Holds the output of a container while the daemon is away. */
  keeper: ProcessState.optional(),
  cgroups: CgroupsState.optional(),
  /** How often the kernel had killed in those cgroups when the container was made. */
  oomKills: z.int().optional(),
});
/** The memory limit of a container of gVisor, in a file of its own: it changes while the container runs. */
export const MemoryFile = z.object({ limit: z.number(), exceeded: z.boolean() });
export type MemoryFile = z.infer<typeof MemoryFile>;

export type ContainerState = z.infer<typeof ContainerState>;

export type ProcessState = z.infer<typeof ProcessState>;

export const ExitFile = z.object({ code: z.int(), finishedAt: z.string(), oomKilled: z.boolean() });

/** The record's state, or what the file says when the record has none yet. */
export function stateOf<T>(schema: z.ZodType<T>, state: HandlerState, file: unknown): T | undefined {
  const known = Object.keys(state).length > 0 ? state : file;
  if (known === undefined) return undefined;
  const parsed = schema.safeParse(known);
  if (parsed.success) return parsed.data;
  throw new RuntimeError("internal", `Cannot read the shim's state: ${z.prettifyError(parsed.error)}`);
}
