import { fieldManager, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Client, Scope } from "@bulkhead/lib/kube/client.ts";
import { leases } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import {
  pods as leanPods,
  nodeRuntimes,
  nodes as nodesByMetadata,
  type RuntimeClass,
  runtimeClasses,
  runtimeProfiles,
} from "@bulkhead/lib/kube/resources.ts";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import { asHeard } from "@bulkhead/lib/view/sign-of-life.ts";

/** What the plugin reads of a cluster. It has no more rights than whoever runs it. */

type ContainerState = { running?: { startedAt: string }; waiting?: { reason?: string; message?: string } };

/** v1 Pod, as much of it as is told. */
export type Pod = KubeObject & {
  spec?: { runtimeClassName?: string; nodeName?: string };
  status?: {
    phase?: string;
    startTime?: string;
    conditions?: {
      type: string;
      status: string;
      reason?: string;
      message?: string;
      lastTransitionTime?: string;
    }[];
    containerStatuses?: { name: string; containerID?: string; ready?: boolean; state?: ContainerState }[];
  };
};

/** v1 Node, as much of it as is told. */
export type Node = KubeObject & {
  status?: { nodeInfo?: { kubeletVersion: string; kernelVersion: string; containerRuntimeVersion: string } };
};

export const pods: Resource<Pod> = { ...leanPods } as Resource<Pod>;
export const nodes: Resource<Node> = { ...nodesByMetadata, metadataOnly: false } as Resource<Node>;

/** The cluster as it was when a command asked. */
export type Seen = {
  now: number;
  profiles: RuntimeProfile[];
  nodeRuntimes: NodeRuntime[];
  nodes: Node[];
  runtimeClasses: RuntimeClass[];
  pods: Pod[];
};

/** All pages of a list. */
export const listAll = async <T extends KubeObject>(
  client: Client,
  resource: Resource<T>,
  scope: Scope & { signal?: AbortSignal } = {},
): Promise<T[]> => {
  const found: T[] = [];
  let next: string | undefined;
  do {
    const page = await client.list(resource, { ...scope, ...(next ? { continue: next } : {}) });
    found.push(...page.items);
    next = page.continue;
  } while (next !== undefined);
  return found;
};

/** Whether the cluster serves Bulkhead's resources. */
export const isInstalled = async (client: Client, signal?: AbortSignal): Promise<boolean> => {
  try {
    await client.list(runtimeProfiles, { limit: 1, ...(signal ? { signal } : {}) });
    return true;
  } catch (error) {
    if (hasCode(error, "not-found")) return false;
    throw error;
  }
};

/** The namespace that Bulkhead is installed in, as its operator wrote it where agents read it; else the one of the docs. */
export const homeOf = async (client: Client): Promise<string> => {
  const { items } = await client.list(nodeRuntimes, { limit: 1 });
  return items[0]?.metadata.annotations?.[labels.leases] ?? "bulkhead-system";
};

/** NodeRuntimes with when their agents were last heard: by their Leases, too. */
export const heard = async (client: Client, runtimes: NodeRuntime[]): Promise<NodeRuntime[]> => {
  const annotated = runtimes.map(({ metadata }) => metadata.annotations?.[labels.leases]);
  const namespace = annotated.find((each) => each !== undefined);
  if (namespace === undefined) return runtimes;
  const labelSelector = `${labels.managedBy}=${fieldManager.agent}`;
  const found = await listAll(client, leases, { namespace, labelSelector });
  const byNode = new Map(found.map((lease) => [lease.metadata.name, lease]));
  return runtimes.map((runtime) => asHeard(runtime, byNode.get(runtime.metadata.name)));
};

/** Everything at once; the lists run side by side. */
export const look = async (client: Client, signal?: AbortSignal): Promise<Seen> => {
  const scope = signal ? { signal } : {};
  const [profiles, runtimes, allNodes, classes, allPods] = await Promise.all([
    listAll(client, runtimeProfiles, scope),
    listAll(client, nodeRuntimes, scope),
    listAll(client, nodes, scope),
    listAll(client, runtimeClasses, scope),
    listAll(client, pods, scope),
  ]);
  return {
    now: Date.now(),
    profiles,
    nodeRuntimes: runtimes,
    nodes: allNodes,
    runtimeClasses: classes,
    pods: allPods,
  };
};
