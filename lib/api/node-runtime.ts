import * as z from "zod";
import { conditionList, dnsLabel, RuntimeProfileSpec } from "./runtime-profile.ts";

/**
 * NodeRuntime (cluster-scoped, one per node, same name, owned by the Node): `spec` is written by the operator,
 * `status` by that node's agent alone.
 */

/** What one node shall have of one profile: all that reaches the node, and the hash of it. */
export const DesiredProfile = RuntimeProfileSpec.pick({
  handler: true,
  artifact: true,
  engine: true,
  probe: true,
}).extend({
  name: dnsLabel,
  /** Hash of what reaches the node; see `revisionOf`. */
  revision: z.string().regex(/^[0-9a-f]{10}$/),
});
export type DesiredProfile = z.infer<typeof DesiredProfile>;

export const NodeRuntimeSpec = z.object({
  /** The operator's alone, written whole: an apply that empties a list of type map takes `spec` away with it. */
  profiles: z.array(DesiredProfile).max(100).meta({ "x-kubernetes-list-type": "atomic" }),
});
export type NodeRuntimeSpec = z.infer<typeof NodeRuntimeSpec>;

/** Where a profile is on its way to serving pods on a node. */
export const profilePhases = [
  "Pending",
  "Installing",
  "Verifying",
  "Ready",
  "Failed",
  "RolledBack",
  "Removing",
] as const;

export const ProfileStatus = z.object({
  name: dnsLabel,
  phase: z.enum(profilePhases),
  /** The revision that serves now; "" while none does. */
  revision: z.string(),
  /** Since when `revision` serves without a failure or a boot between; left out while new pods do not start by it. */
  readySince: z.string().meta({ format: "date-time" }).optional(),
  /** The revision last tried, when it is another than `revision`. */
  attemptedRevision: z.string().optional(),
  /** CamelCase; stable, for machines. */
  reason: z.string(),
  message: z.string().max(1024),
  canary: z
    .object({
      passed: z.boolean(),
      at: z.string().meta({ format: "date-time" }),
      /** Seconds from RunPodSandbox to the canary's container running; of one that the kubelet runs itself from its file. */
      startSeconds: z.number(),
      /** Kernel release that a process behind the wall sees. */
      kernel: z.string().max(256),
      /** Memory that the canary's pod took beside its own process: sandbox, shim, monitor. */
      overheadBytes: z.int().optional(),
      /** What was asserted, such as kernel-differs, own-pid-namespace. */
      assertions: z.array(z.string()).max(32),
      failures: z.int(),
    })
    .optional(),
  /** Latencies of the last canaries on this node, in seconds. */
  startSeconds: z.object({ p50: z.number(), p99: z.number() }).optional(),
  /** Pods of this profile now running here, by namespace. */
  pods: z.record(z.string(), z.int()).optional(),
});
export type ProfileStatus = z.infer<typeof ProfileStatus>;

export const NodeRuntimeStatus = z.object({
  observedGeneration: z.int().optional(),
  conditions: conditionList.optional(),
  /** What serves the node's kubelet: its own engine, or Bulkhead in front of it. */
  engine: z
    .object({
      name: z.string(),
      version: z.string(),
      socket: z.string(),
      fronted: z.boolean(),
    })
    .optional(),
  kernel: z.string().optional(),
  arch: z.string().optional(),
  cgroup: z.enum(["v1", "v2"]).optional(),
  /** A guest was booted through /dev/kvm. */
  kvm: z.boolean().optional(),
  /** gVisor's platforms, each tried with a sandbox on this node. */
  gvisorPlatforms: z
    .array(
      z.object({
        name: z.enum(["systrap", "kvm", "ptrace"]),
        works: z.boolean(),
        /** Why it does not. */
        message: z.string().max(256).optional(),
      }),
    )
    .max(3)
    .optional()
    .meta({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"] }),
  /** What else virtual machines find here. */
  virtualization: z
    .object({
      /** Why KVM boots no guest; "" where it does. */
      kvmProblem: z.string().max(256),
      vhostVsock: z.boolean(),
      vhostNet: z.boolean(),
      /** The node is a virtual machine itself. */
      nested: z.boolean(),
    })
    .optional(),
  agentVersion: z.string().optional(),
  runtimeVersion: z.string().optional(),
  /** When this was written. That the agent lives is said by its Lease, too, of the node's name. */
  heartbeat: z.string().meta({ format: "date-time" }).optional(),
  /** Profiles that are Ready of those that are here, such as 2/2: what kubectl can show of a list. */
  ready: z.string().max(16).optional(),
  /**
   * The agent's alone, written whole, as `spec.profiles` is: an owner for each field was half of the object and a third
   * of what a write costs the API server (docs/scale.md).
   */
  profiles: z.array(ProfileStatus).max(100).optional().meta({ "x-kubernetes-list-type": "atomic" }),
});
export type NodeRuntimeStatus = z.infer<typeof NodeRuntimeStatus>;

export type NodeRuntime = {
  apiVersion: string;
  kind: "NodeRuntime";
  metadata: {
    name: string;
    uid?: string;
    generation?: number;
    resourceVersion?: string;
    ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string }[];
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec: NodeRuntimeSpec;
  status?: NodeRuntimeStatus;
};

/**
 * New pods of the profile start on the node: some revision serves there and its canary did not fail. While another
 * revision is being installed, or was rolled back, the earlier one goes on serving.
 */
export const serves = (reported: ProfileStatus | undefined): boolean =>
  reported !== undefined &&
  reported.revision !== "" &&
  reported.phase !== "Failed" &&
  reported.phase !== "Removing" &&
  // After a rollback the canary that failed was the other revision's.
  (reported.phase === "RolledBack" || reported.canary?.passed !== false);

/** What is broken of what served there before: the runtime in front of the kubelet, or a profile. */
export const faultOf = ({
  conditions = [],
  engine,
  profiles = [],
}: Pick<NodeRuntimeStatus, "conditions" | "engine" | "profiles">):
  | { reason: string; message: string }
  | undefined => {
  const runtime = conditions.find(
    ({ type, status }) => ["RuntimeReady", "RuntimeConfigured"].includes(type) && status === "False",
  );
  // Where our runtime never served, nothing is lost.
  if (runtime && engine?.fronted) return { reason: runtime.reason, message: runtime.message };
  // A profile that fails and has no revision did not work before either.
  const failed = profiles.find(({ phase, revision }) => phase === "Failed" && revision !== "");
  return failed && { reason: failed.reason, message: `${failed.name}: ${failed.message}` };
};
