import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { type ClusterVersions, usualKubernetes } from "../tools/kubernetes.ts";
import type { ClusterDescription, NodeDescription } from "./description.ts";

/** Where a cluster's things stand and which addresses it has: all of it follows from its description and slot. */
export type ClusterPlan = {
  name: string;
  /** A number no other cluster of this machine has: addresses, ports and interface names are made from it. */
  slot: number;
  /** Records, bundles, mounts. */
  run: string;
  /** Certificates, logs, etcd's and the registry's data, the nodes' disks. */
  disk: string;
  bridge: string;
  /** The bridge's address: the control plane and the registry listen on it. */
  address: string;
  prefix: number;
  podCidr: string;
  serviceCidr: string;
  /** ClusterIP of the Service `kubernetes`. */
  serviceAddress: string;
  apiPort: number;
  registryPort: number;
  /** Loopback ports of the host: nodes cannot reach them. */
  ports: { etcd: number; etcdPeer: number; controllerManager: number; scheduler: number };
  /** In every cgroup hierarchy, the directory that holds the nodes. */
  cgroup: string;
  kubernetes: ClusterVersions;
  nodes: NodePlan[];
};

/** One node's part of a {@link ClusterPlan}. */
export type NodePlan = {
  description: NodeDescription;
  name: string;
  /** Name of the runc container. */
  container: string;
  address: string;
  podCidr: string;
  /** Host side of the node's cable to the bridge. */
  veth: string;
  mac: string;
  cgroup: string;
  run: string;
  disk: string;
};

/** Slots 0 to 15: each has 10.77.SLOT.0/24 for nodes and 10.78.(16·SLOT).0/20 for pods, 16 nodes of a /24. */
export const slots = 16;

/** Lays a cluster out. Pure: equal arguments, equal plan. */
export const planCluster = (
  description: ClusterDescription,
  slot: number,
  dirs: { run: string; disk: string },
): ClusterPlan => {
  const { name, nodes } = description;
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(name))
    throw new RuntimeError("invalid-argument", `Cannot name a cluster "${name}": use a-z, 0-9 and -`);
  if (nodes.length > 16)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot start ${nodes.length} nodes: a cluster has at most 16`,
    );
  if (new Set(nodes.map((node) => node.name)).size !== nodes.length)
    throw new RuntimeError(
      "invalid-argument",
      `Cannot start cluster "${name}": two nodes have the same name`,
    );
  const cgroup = `/bulkhead-dev/${name}`;
  const base = 21_000 + slot * 100;
  return {
    name,
    slot,
    ...dirs,
    bridge: `bhd${slot}`,
    address: `10.77.${slot}.1`,
    prefix: 24,
    podCidr: `10.78.${slot * 16}.0/20`,
    serviceCidr: "10.96.0.0/16",
    serviceAddress: "10.96.0.1",
    apiPort: 6443,
    registryPort: 5000,
    ports: { etcd: base, etcdPeer: base + 1, controllerManager: base + 2, scheduler: base + 3 },
    cgroup,
    kubernetes: description.kubernetes ?? { controlPlane: usualKubernetes, kubelet: usualKubernetes },
    nodes: nodes.map((node, i) => ({
      description: node,
      name: node.name,
      container: `bulkhead-${name}-${node.name}`,
      address: `10.77.${slot}.${10 + i}`,
      podCidr: `10.78.${slot * 16 + i}.0/24`,
      veth: `bhd${slot}n${i}`,
      mac: `02:42:0a:4d:${hex(slot)}:${hex(10 + i)}`,
      cgroup: `${cgroup}/${node.name}`,
      run: `${dirs.run}/nodes/${node.name}`,
      disk: `${dirs.disk}/nodes/${node.name}`,
    })),
  };
};

const hex = (n: number): string => n.toString(16).padStart(2, "0");

/** URL of the API server, as nodes and this machine reach it. */
export const apiUrl = (plan: ClusterPlan): string => `https://${plan.address}:${plan.apiPort}`;

/** Host and port of the cluster's registry, as image names begin with. */
export const registryHost = (plan: ClusterPlan): string => `${plan.address}:${plan.registryPort}`;
