import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Lease } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { type AgentPod, hasEnded, type JudgedPod } from "@bulkhead/lib/kube/resources.ts";
import { templateHash } from "@bulkhead/lib/view/agents.ts";
import { brokenBy, type WatchedPod } from "./tenancy/rules.ts";

/** What the operator keeps of the objects that clusters have thousands of: only what planning and the page read. */

/**
 * Of a pod only what deletion and counting ask for: clusters have a hundred thousand. Those that ended not at all. Without
 * its version, which each of a pod's many updates changes: of two that are kept alike nothing is to be planned.
 */
export const slimPods = (): ((pod: JudgedPod) => WatchedPod | undefined) => {
  const one = createPool();
  return (pod) => {
    if (hasEnded(pod)) return undefined;
    const { name, namespace } = pod.metadata;
    const { runtimeClassName } = pod.spec ?? {};
    const broken = brokenBy(pod);
    return {
      metadata: { name, ...(namespace ? { namespace: one(namespace) } : {}) },
      ...(runtimeClassName ? { spec: one({ runtimeClassName }) } : {}),
      ...(broken.length > 0 ? { broken: one(broken) } : {}),
    };
  };
};

/** Of an agent's pod what tells which version stands on its node, and whether it works. */
export const slimAgentPod = ({ metadata, spec, status }: AgentPod): AgentPod => {
  const { labels: _labels, annotations: _annotations, ...kept } = metadata;
  const hash = metadata.labels?.[templateHash];
  return {
    metadata: { ...kept, ...(hash === undefined ? {} : { labels: { [templateHash]: hash } }) },
    ...(spec?.nodeName ? { spec: { nodeName: spec.nodeName } } : {}),
    status: {
      conditions: (status?.conditions ?? [])
        .filter(({ type }) => type === "Ready")
        .map(({ type, status, lastTransitionTime }) => ({
          ...{ type, status },
          ...(lastTransitionTime === undefined ? {} : { lastTransitionTime }),
        })),
      containerStatuses: (status?.containerStatuses ?? []).map(({ ready }) => ({ ready })),
    },
  };
};

export const slimNode = ({ metadata }: KubeObject): KubeObject => ({
  metadata: {
    name: metadata.name,
    ...(metadata.uid ? { uid: metadata.uid } : {}),
    ...(metadata.resourceVersion ? { resourceVersion: metadata.resourceVersion } : {}),
    labels: metadata.labels ?? {},
  },
});

/** Of an agent's Lease when it was renewed. */
export const slimLease = ({ metadata, spec }: Lease): Lease => ({
  metadata: {
    name: metadata.name,
    ...(metadata.namespace ? { namespace: metadata.namespace } : {}),
    ...(metadata.resourceVersion ? { resourceVersion: metadata.resourceVersion } : {}),
  },
  ...(spec?.renewTime ? { spec: { renewTime: spec.renewTime } } : {}),
});

/** Equal values become one. Bounded, because what agents write is theirs: beyond `most` it begins anew. */
export const createPool = (most = 10_000): (<T>(value: T) => T) => {
  const known = new Map<string, unknown>();
  return <T>(value: T): T => {
    const text = JSON.stringify(value);
    const same = known.get(text);
    if (same !== undefined) return same as T;
    if (known.size >= most) known.clear();
    known.set(text, value);
    return value;
  };
};

/** Thousands of nodes hold the same revisions, and say the same of them: that is kept once. */
export const slimRuntimes = (): ((runtime: NodeRuntime) => NodeRuntime) => {
  const one = createPool();
  const report = (said: ProfileStatus): ProfileStatus => ({
    ...said,
    name: one(said.name),
    reason: one(said.reason),
    message: one(said.message),
    ...(said.canary
      ? {
          canary: {
            ...said.canary,
            kernel: one(said.canary.kernel),
            assertions: one(said.canary.assertions),
          },
        }
      : {}),
    ...(said.pods ? { pods: one(said.pods) } : {}),
  });
  return ({ apiVersion, kind, metadata, spec, status }) => {
    const { [labels.drains]: drains, [labels.leases]: leases } = metadata.annotations ?? {};
    const { gvisorPlatforms: _platforms, virtualization: _virtualization, ...kept } = status ?? {};
    return {
      apiVersion: one(apiVersion),
      kind,
      metadata: {
        name: metadata.name,
        ...(metadata.uid ? { uid: metadata.uid } : {}),
        ...(metadata.generation === undefined ? {} : { generation: metadata.generation }),
        ...(metadata.resourceVersion ? { resourceVersion: metadata.resourceVersion } : {}),
        ...(drains === undefined && leases === undefined
          ? {}
          : {
              annotations: one({
                ...(drains === undefined ? {} : { [labels.drains]: drains }),
                ...(leases === undefined ? {} : { [labels.leases]: leases }),
              }),
            }),
        ...(metadata.ownerReferences ? { ownerReferences: metadata.ownerReferences } : {}),
      },
      spec: { profiles: spec.profiles.map(one) },
      ...(status
        ? {
            status: {
              ...kept,
              ...(kept.engine ? { engine: one(kept.engine) } : {}),
              ...(kept.kernel === undefined ? {} : { kernel: one(kept.kernel) }),
              ...(kept.profiles ? { profiles: kept.profiles.map(report) } : {}),
            },
          }
        : {}),
    };
  };
};
