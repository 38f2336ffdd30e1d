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
} as const;

/** Held on a RuntimeProfile until no pod uses its class and every node gave the handler back. */
export const finalizer = `${group}/in-use`;
