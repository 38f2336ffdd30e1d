import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { tool } from "./cache.ts";

/**
 * The Kubernetes that the estate can build, from the oldest that the chart takes: of each minor the newest patch. Each
 * has its pins in kubernetes/: the requirements of main.go with upstream's own list of replacements, after
 * `go mod tidy -modfile=go-MINOR.mod` (of the usual one go.mod itself).
 */
export const kubernetesVersions = {
  "1.33": "v1.33.13",
  "1.34": "v1.34.4",
  "1.35": "v1.35.4",
  "1.36": "v1.36.3",
  "1.37": "v1.37.2",
} as const;

/** A minor of {@link kubernetesVersions}. */
export type KubernetesVersion = keyof typeof kubernetesVersions;

/** What everything runs on that is not asked for another one, CI included. */
export const usualKubernetes = "1.36";

/** Its program's name in the cache's bin: one binary with apiserver, controller manager, scheduler and kubelet. */
export const kubeName = (version: KubernetesVersion): string =>
  version === usualKubernetes ? "kube" : `kube-${version}`;

/** That program's path: which of the four it is, it is told by the name that it is started by. */
export const kube = (version: KubernetesVersion): string => tool(kubeName(version));

/** Versions of a cluster: nodes may be older than what they are joined to. */
export type ClusterVersions = { controlPlane: KubernetesVersion; kubelet: KubernetesVersion };

/** What `./dev --kubernetes` and `--kubelet` chose, for the programs that it starts, too. */
export const chosenVersions = (): ClusterVersions => {
  const controlPlane = chosen("BULKHEAD_KUBERNETES") ?? usualKubernetes;
  return { controlPlane, kubelet: chosen("BULKHEAD_KUBELET") ?? controlPlane };
};

const chosen = (name: string): KubernetesVersion | undefined => {
  const value = process.env[name];
  if (value === undefined || value === "") return undefined;
  if (Object.hasOwn(kubernetesVersions, value)) return value as KubernetesVersion;
  throw new RuntimeError(
    "invalid-argument",
    `Cannot take ${name}=${value}: it is one of ${Object.keys(kubernetesVersions).join(", ")}`,
  );
};
