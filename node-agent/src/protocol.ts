import { NodeRuntimeSpec, NodeRuntimeStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { handlerKinds } from "@bulkhead/lib/api/runtime-profile.ts";
import { z } from "zod";

/**
 * What the agent's two containers say to each other, HTTP over a Unix socket. The reporter has the API token and no
 * rights on the host; the installer has the host and no token. Nothing but these types passes: no command, no path.
 *
 *   POST /v1/desired           Desired → 204; with a W3C traceparent, what is done about it is of that trace
 *   GET  /v1/report?after=N    Report newer than N, held back until there is one or 20 s are over
 */

const DesiredState = z.object({
  /** metadata.generation of the NodeRuntime; 0 when the node has none. */
  generation: z.int().min(0),
  profiles: NodeRuntimeSpec.shape.profiles,
});

/**
 * What the node shall have. No profiles: the node is to be what it was before Bulkhead. The API server has checked
 * all of it; the installer believes nobody and checks again, down to keys that it does not know: what it cannot
 * read, it must not pass over.
 */
export const Desired = z.unknown().transform((input, context): z.infer<typeof DesiredState> => {
  const parsed = DesiredState.safeParse(input);
  if (!parsed.success) {
    for (const { path, message } of parsed.error.issues)
      context.issues.push({ code: "custom", path: [...path], message, input });
    return z.NEVER;
  }
  const refuse = (path: PropertyKey[], message: string): void => {
    context.issues.push({ code: "custom", path, message, input });
  };
  for (const path of unknownKeys(input, parsed.data)) refuse(path, "unknown key");
  const { profiles } = parsed.data;
  for (const [at, { name, handler }] of profiles.entries()) {
    const kinds = handlerKinds.filter((kind) => handler[kind] !== undefined);
    if (kinds.length !== 1)
      refuse(["profiles", at, "handler"], `exactly one of ${handlerKinds.join(", ")} must be set`);
    if (profiles.findIndex((other) => other.name === name) !== at)
      refuse(["profiles", at, "name"], `"${name}" is there twice`);
  }
  return parsed.data;
});
export type Desired = z.infer<typeof Desired>;

/** Paths of what stands in `input` and not in what was read of it. */
function unknownKeys(input: unknown, read: unknown, path: PropertyKey[] = []): PropertyKey[][] {
  if (typeof input !== "object" || input === null || typeof read !== "object" || read === null) return [];
  return Object.entries(input).flatMap(([key, value]) => {
    const here = [...path, Array.isArray(input) ? Number(key) : key];
    return Object.hasOwn(read, key)
      ? unknownKeys(value, (read as Record<string, unknown>)[key], here)
      : [here];
  });
}

/** Something that happened on the node and that people should see: the reporter makes a Kubernetes Event of it. */
export const Happening = z
  .object({
    /** Increases within one life of the installer. */
    seq: z.int(),
    at: z.string(),
    type: z.enum(["Normal", "Warning"]),
    reason: z.string(),
    message: z.string(),
    /** The profile it is about; the node as a whole without one. */
    profile: z.string().optional(),
  })
  .strict();
export type Happening = z.infer<typeof Happening>;

/** What the node is. Everything in NodeRuntime.status but what only the reporter knows. */
export const Report = z
  .object({
    /** Differs in every life of the installer: `seq` and `version` start anew. */
    instance: z.string(),
    version: z.int(),
    happenings: z.array(Happening),
    status: NodeRuntimeStatus.omit({ heartbeat: true, agentVersion: true }),
  })
  .strict();
export type Report = z.infer<typeof Report>;

/** The report is the last word on the desired state of that generation: no profile is on its way any more. */
export const isThrough = (
  { observedGeneration = -1, profiles = [] }: Report["status"],
  generation: number,
): boolean =>
  observedGeneration >= generation &&
  profiles.every(({ phase }) => ["Ready", "RolledBack", "Removing", "Failed"].includes(phase));

/** Socket in the directory that both containers mount. */
export const socketPath = "/run/agent/installer.sock";
