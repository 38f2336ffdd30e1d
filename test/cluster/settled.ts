import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { type Cluster, until } from "./cluster.ts";

type AgentPod = {
  spec: { nodeName: string };
  status: { containerStatuses?: { state: { running?: { startedAt: string } } }[] };
};

/**
 * Waits until the agents that run now have done their work: each has spoken since it was started, of what is wanted
 * today, and serves these profiles. Until then a status may be that of the agent before, while its successor puts
 * another version in place.
 */
export const agentsSettled = (
  cluster: Cluster,
  namespace: string,
  profiles: readonly string[],
  signal: AbortSignal,
): Promise<void> =>
  until(signal, 180_000, "the node agents to settle", async () => {
    const list = async <T>(...argv: string[]): Promise<T[]> =>
      (JSON.parse(await cluster.kubectl(["get", ...argv, "-o", "json"])) as { items: T[] }).items;
    const selector = "app.kubernetes.io/component=node-agent";
    const [pods, nodes] = await Promise.all([
      list<AgentPod>("pods", "-n", namespace, "-l", selector),
      list<NodeRuntime>("noderuntimes"),
    ]);
    const unsettled = pods.flatMap(({ spec, status }) => {
      const node = nodes.find(({ metadata }) => metadata.name === spec.nodeName);
      const starts = (status.containerStatuses ?? []).map(({ state }) =>
        state.running === undefined ? Number.POSITIVE_INFINITY : Date.parse(state.running.startedAt),
      );
      const said = Date.parse(node?.status?.heartbeat ?? "");
      if (!starts.every((start) => said > start)) return [`the agent of ${spec.nodeName} said nothing yet`];
      return profiles.flatMap((name) => {
        const wanted = node?.spec.profiles.find((each) => each.name === name);
        const found = node?.status?.profiles?.find((each) => each.name === name);
        return found?.phase === "Ready" && found.revision === wanted?.revision
          ? []
          : [`${name} on ${spec.nodeName} is ${found?.phase ?? "not there"}`];
      });
    });
    if (unsettled.length > 0) throw new Error(unsettled.join("; "));
    return pods.length > 0;
  });
