import { NodeRuntimeSpec, NodeRuntimeStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { z } from "zod";

/**
 * What the agent's two containers say to each other, HTTP over a Unix socket. The reporter has the API token and no
 * rights on the host; the installer has the host and no token. Nothing but these types passes: no command, no path.
 *
 *   POST /v1/desired           Desired → 204
 *   GET  /v1/report?after=N    Report newer than N, held back until there is one or 20 s are over
 */

/** What the node shall have. No profiles: the node is to be what it was before Bulkhead. */
export const Desired = z
  .object({
    /** metadata.generation of the NodeRuntime; 0 when the node has none. */
    generation: z.int().min(0),
    profiles: NodeRuntimeSpec.shape.profiles,
  })
  .strict();
export type Desired = z.infer<typeof Desired>;

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

/** Socket in the directory that both containers mount. */
export const socketPath = "/run/agent/installer.sock";
