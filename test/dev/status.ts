import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { get } from "../cluster/api.ts";
import { openCluster } from "../cluster/cluster.ts";
import { components, healthUrl } from "../cluster/control-plane.ts";
import { apiUrl } from "../cluster/plan.ts";
import { isStale, listRecords } from "../cluster/record.ts";
import { runtimeRecord } from "./runtime.ts";

/** What runs on this machine and how it is, for people. */
export const statusText = async (): Promise<string> => {
  const lines: string[] = [];
  for (const record of await listRecords()) {
    const { name } = record.description;
    if (await isStale(record)) {
      lines.push(`cluster ${name}: ended with the machine's last boot; ./dev down clears it away`);
      continue;
    }
    const cluster = await openCluster(name);
    lines.push(
      `cluster ${name}: ${apiUrl(cluster.plan)}, registry ${cluster.registry}, KUBECONFIG=${cluster.kubeconfig}`,
    );
    for (const component of components) {
      const health = await get(cluster.plan, healthUrl(cluster.plan, component)).then(
        ({ status }) => (status === 200 ? "well" : `answers ${status}`),
        (error: unknown) => messageOf(error),
      );
      lines.push(`  ${component.padEnd(24)} ${health}`);
    }
    for (const node of cluster.nodes)
      lines.push(`  ${`node ${node.name}`.padEnd(24)} ${await nodeHealth(cluster, node)}`);
  }
  const runtime = await runtimeRecord();
  if (runtime !== undefined) lines.push(`runtime: unix://${runtime.socket}, log ${runtime.log}`);
  return lines.length === 0 ? "nothing runs: start with ./dev demo or ./dev up\n" : `${lines.join("\n")}\n`;
};

const nodeHealth = async (
  cluster: Awaited<ReturnType<typeof openCluster>>,
  node: (typeof cluster.nodes)[number],
): Promise<string> => {
  if (!(await node.running())) return "stopped";
  const path = `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.nodeInfo.containerRuntimeVersion}`;
  const [ready = "", engine = ""] = (
    await cluster.kubectl(["get", "node", node.name, "-o", path]).catch(() => "Unknown")
  ).split(" ");
  return `${ready === "True" ? "Ready" : `not Ready (${ready})`} ${node.address} ${engine}`.trim();
};
