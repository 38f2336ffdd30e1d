import { join } from "node:path";
import { type KubernetesVersion, kubernetesVersions, usualKubernetes } from "../tools/kubernetes.ts";
import { inherit } from "./logs.ts";

/** What meets the API server, without nodes: CRDs, policies, RBAC, chart, operator, plugin. */
const api = [
  ...["lib/api/crd", "lib/kube/client", "test/chart/rbac", "kubectl/src/kubectl"],
  ...["operator/src/operator", "operator/src/tenancy"],
];

/** What meets the kubelet: the chart on nodes, the switch of the kubelet, and pods under runc and gVisor. */
const nodes = ["test/agent/chart", "test/agent/kubelet", "test/pods/pods"];

/** The versions that CI does not start, oldest first. */
export const otherVersions = (Object.keys(kubernetesVersions) as KubernetesVersion[]).filter(
  (version) => version !== usualKubernetes,
);

/**
 * The tests that another Kubernetes could fail, on each of these versions: against its API server, and, for the
 * oldest and whoever asks, on nodes with its kubelet. Returns the first exit code that is not 0.
 */
export const testVersions = async (
  versions: readonly KubernetesVersion[],
  onNodes: readonly KubernetesVersion[],
  print: (text: string) => void,
  signal: AbortSignal,
): Promise<number> => {
  const runs = versions.flatMap((version) => [
    { version, project: "host", filters: api },
    ...(onNodes.includes(version) ? [{ version, project: "cluster", filters: nodes }] : []),
  ]);
  let first = 0;
  const results: string[] = [];
  for (const { version, project, filters } of runs) {
    if (signal.aborted) break;
    const code = await inherit([
      ...[process.execPath, join(import.meta.dirname, "main.ts"), "--kubernetes", version],
      ...["test", "--project", project, ...filters],
    ]);
    first ||= code;
    results.push(`${kubernetesVersions[version]} ${project}: ${code === 0 ? "passed" : "FAILED"}\n`);
  }
  print(results.join(""));
  return first;
};
