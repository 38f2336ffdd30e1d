import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { namespace } from "../cluster/bulkhead.ts";
import { pki } from "../cluster/certificates.ts";
import type { Cluster, Node } from "../cluster/cluster.ts";
import { apiUrl } from "../cluster/plan.ts";
import { tool } from "../tools/cache.ts";
import { type Outcome, outcome } from "../tools/run.ts";

/** The chart's parts on a cluster, as the tests ask for them. */

type Pod = {
  metadata: { name: string };
  spec: PodSpec;
  status: { phase: string };
};
type PodSpec = {
  nodeName: string;
  hostPID?: boolean;
  hostNetwork?: boolean;
  hostIPC?: boolean;
  automountServiceAccountToken?: boolean;
  containers: Container[];
  volumes: ({ name: string } & Record<string, unknown>)[];
};
type Container = {
  name: string;
  securityContext: Record<string, unknown>;
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean }[];
};

export async function podsOf(cluster: Cluster, component: "node-agent" | "operator"): Promise<Pod[]> {
  const selector = `app.kubernetes.io/component=${component}`;
  const text = await cluster.kubectl(["get", "pods", "-n", namespace, "-l", selector, "-o", "json"]);
  return (JSON.parse(text) as { items: Pod[] }).items;
}

export async function agentOn(cluster: Cluster, node: Node): Promise<Pod> {
  const pod = (await podsOf(cluster, "node-agent")).find(({ spec }) => spec.nodeName === node.name);
  if (pod === undefined) throw new Error(`Cannot find the agent of ${node.name}`);
  return pod;
}

/** A program in a container of the chart; both of our images bring busybox or Node alone. */
export const execIn = (cluster: Cluster, pod: Pod, container: string, ...argv: string[]): Promise<string> =>
  cluster.kubectl(["exec", "-n", namespace, pod.metadata.name, "-c", container, "--", ...argv]);

/** kubectl with a token and nothing of the administrator's. */
export const kubectlAs = (cluster: Cluster, token: string, argv: string[], input = ""): Promise<Outcome> =>
  outcome(
    [
      tool("kubectl"),
      "--kubeconfig=/dev/null",
      `--server=${apiUrl(cluster.plan)}`,
      `--certificate-authority=${pki(cluster.plan).ca.cert}`,
      `--token=${token}`,
      ...argv,
    ],
    { input },
  );

export const nodeRuntime = async (cluster: Cluster, name: string): Promise<NodeRuntime> =>
  JSON.parse(await cluster.kubectl(["get", "noderuntime", name, "-o", "json"])) as NodeRuntime;

export type NodeEvent = { type: string; reason: string; note: string; at: number };

/** Events about a node's NodeRuntime. */
export async function eventsOf(cluster: Cluster, name: string): Promise<NodeEvent[]> {
  const text = await cluster.kubectl(["get", "events.events.k8s.io", "-A", "-o", "json"]);
  const { items } = JSON.parse(text) as {
    items: {
      type: string;
      reason: string;
      note: string;
      eventTime: string;
      series?: { lastObservedTime: string };
      regarding: { kind: string; name: string };
    }[];
  };
  return items
    .filter(({ regarding }) => regarding.kind === "NodeRuntime" && regarding.name === name)
    .map(({ type, reason, note, eventTime, series }) => ({
      type,
      reason,
      note,
      at: Date.parse(series?.lastObservedTime ?? eventTime),
    }));
}

export type Sample = { name: string; labels: Record<string, string>; value: number };

/** Prometheus' text format: samples, and the type of each metric. */
export function parseMetrics(text: string): { samples: Sample[]; types: Map<string, string> } {
  const types = new Map<string, string>();
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    const type = /^# TYPE (\S+) (\S+)$/.exec(line);
    if (type?.[1] !== undefined && type[2] !== undefined) {
      if (types.has(type[1])) throw new Error(`Metric ${type[1]} is there twice`);
      types.set(type[1], type[2]);
    }
    if (line === "" || line.startsWith("#")) continue;
    const sample = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (sample?.[1] === undefined) throw new Error(`Cannot read the sample "${line}"`);
    const labels = [...(sample[2] ?? "").matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)].map(
      ([, name, value]) => [name, value] as const,
    );
    samples.push({
      name: sample[1],
      labels: Object.fromEntries(labels) as Record<string, string>,
      value: Number(sample[3]?.replace("+Inf", "Infinity")),
    });
  }
  return { samples, types };
}

/** What a Prometheus gets from a pod. */
export const scrape = async (cluster: Cluster, pod: Pod, port: number) =>
  parseMetrics(
    await cluster.kubectl([
      "get",
      "--raw",
      `/api/v1/namespaces/${namespace}/pods/${pod.metadata.name}:${port}/proxy/metrics`,
    ]),
  );
