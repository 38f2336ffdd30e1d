import type { ClusterVersions } from "../tools/kubernetes.ts";

/** A cluster as a test asks for it. The same description always gives the same cluster. */
export type ClusterDescription = {
  /** Names the cluster in every path, interface and process. Lower case letters, digits and dashes. */
  name: string;
  nodes: readonly NodeDescription[];
  /** Of control plane and kubelets; if none is named, what `./dev --kubernetes` chose. */
  kubernetes?: ClusterVersions;
};

/** A node: a systemd host with a kubelet and the engine it stands on. */
export type NodeDescription = {
  name: string;
  /** What serves the kubelet: containerd, or Bulkhead's runtime alone, from the agent's bundle. */
  engine: "containerd" | "bulkhead";
  /** Merged over the KubeletConfiguration every node gets (kubelet.config.k8s.io/v1beta1). */
  kubelet?: Readonly<Record<string, unknown>>;
  /** Merged over the runtime's configuration, where the engine is Bulkhead's runtime alone. */
  runtime?: Readonly<Record<string, unknown>>;
  labels?: Readonly<Record<string, string>>;
};

/** The description `./dev up` and the shared cluster of the tests start from. */
export const defaultDescription = (name: string, nodes = 1): ClusterDescription => ({
  name,
  nodes: Array.from({ length: nodes }, (_, i) => ({ name: `node-${i + 1}`, engine: "containerd" })),
});
