import { outcome, run } from "../tools/run.ts";
import { networkScript } from "./node-files.ts";
import type { ClusterPlan, NodePlan } from "./plan.ts";

/** Makes the cluster's bridge, with the control plane's address, unless it is there. */
export const makeBridge = async (plan: ClusterPlan, signal: AbortSignal): Promise<void> => {
  if ((await outcome(["ip", "link", "show", plan.bridge])).code === 0) return;
  await run(["ip", "link", "add", plan.bridge, "type", "bridge"], { signal });
  await run(["ip", "addr", "add", `${plan.address}/${plan.prefix}`, "dev", plan.bridge], { signal });
  await run(["ip", "link", "set", plan.bridge, "up"], { signal });
};

/** Takes the bridge and every cable of the cluster away; routes go with them. */
export const removeBridge = async (plan: ClusterPlan): Promise<void> => {
  for (const link of [...plan.nodes.map((node) => node.veth), plan.bridge])
    await outcome(["ip", "link", "del", link]);
};

/** Wires a node, whose first process is `pid`, to the bridge, and routes its pods' addresses to it. */
export const plugNode = async (
  plan: ClusterPlan,
  node: NodePlan,
  pid: number,
  signal: AbortSignal,
): Promise<void> => {
  // A cable of an earlier life may be on its way out.
  await outcome(["ip", "link", "del", node.veth]);
  await run(["ip", "link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", String(pid)], {
    signal,
  });
  await run(["ip", "link", "set", node.veth, "master", plan.bridge, "up"], { signal });
  await run(["nsenter", "--net", `--target=${pid}`, "sh", "-c", networkScript(plan, node)], { signal });
  await run(["ip", "route", "replace", node.podCidr, "via", node.address, "dev", plan.bridge], { signal });
};
