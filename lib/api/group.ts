/** The API group, its version, and the names that operator, agent and runtime agree on. */
export const group = "bulkhead.dev";
export const version = "v1alpha1";
export const apiVersion = `${group}/${version}`;

/** Field manager of server-side apply, by program. */
export const fieldManager = { operator: "bulkhead-operator", agent: "bulkhead-agent" } as const;

/** Labels and annotations that Bulkhead writes. */
export const labels = {
  /** On every object that Bulkhead made; the value is the program. */
  managedBy: "app.kubernetes.io/managed-by",
  /** On RuntimeClass: the profile it belongs to. */
  profile: `${group}/profile`,
  /** On Node, `handler.bulkhead.dev/PROFILE: ready` once that profile's canary passed there. */
  handlerReady: (profile: string) => `handler.${group}/${profile}`,
  /** Key of the taint that a node registers with, taken off once that profile's canary passed there. */
  startupTaint: (profile: string) => `handler.${group}/${profile}`,
  /** Annotation of a NodeRuntime: the profiles whose pods are asked away from the node, and since when. */
  drains: `${group}/drains`,
  /** Annotation of the agents' DaemonSet: how a version of Bulkhead's own goes over the nodes ({@link AgentRollout}). */
  agentRollout: `${group}/rollout`,
  /** Annotation of the agents' DaemonSet: "true" while no further node gets the version. */
  agentRolloutPaused: `${group}/rollout-paused`,
  /**
   * Annotation of a NodeRuntime: the namespace of the Lease, named as the node, by which its agent says that it lives. An
   * operator that reads those Leases writes it; where it is missing, the sign of life stands in the status.
   */
  leases: `${group}/leases`,
  /** Annotation of a NodeRuntime: the W3C traceparent of the reconcile that wrote its spec, where that is traced. */
  traceparent: `${group}/traceparent`,
  /** On the agent's canary pods: the handler they prove. */
  canary: `${group}/canary`,
} as const;

/** Held on a RuntimeProfile until no pod uses its class and every node gave the handler back. */
export const finalizer = `${group}/in-use`;

/**
 * Namespace of the agent's canary pods. No Kubernetes namespace can have this name (a DNS label has no dot), so no
 * pod of the cluster can pass for one. The runtime leaves them out of lists, statistics and events unless the
 * caller's filter has a label selector: a kubelet kills pods that it does not know.
 */
export const canaryNamespace = "bulkhead.canary";

/**
 * Namespace of canaries that a kubelet runs as static pods, which it takes from names alone. None of the cluster has it:
 * the kubelet shows such a pod to the API server as a mirror, and where there is no namespace it cannot, so that nobody
 * counts it or has a policy for it. What is in a namespace of this name is a tenant's.
 */
export const staticCanaryNamespace = "bulkhead-canary";

/** Image of the canary. The registry's name cannot resolve: the runtime's mirror of it is a directory of the bundle. */
export const canaryImage = "canary.bulkhead.invalid/canary:1";
