import type { NodeRuntimeStatus, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition } from "@bulkhead/lib/api/runtime-profile.ts";
import type { HostFacts } from "./facts.ts";
import type { VmFacts } from "./kata/node.ts";
import type { Trial } from "./platform.ts";
import type { Pod } from "./pods.ts";
import { type ProfileState, statusOf } from "./state.ts";

/** What the last look at the node found. */
export type Seen = {
  /** The desired state that a whole pass has been made for. */
  observed: number | undefined;
  /** Running pods by handler. */
  pods: ReadonlyMap<string, Pod[]>;
  engine: NodeRuntimeStatus["engine"] | undefined;
  runtimeVersion: string | undefined;
  /** Of gVisor's platforms. */
  trials: readonly Trial[] | undefined;
  /** What virtual machines find here; undefined: as it was when we started. */
  vm: VmFacts | undefined;
};

export type ShownStatus = Omit<NodeRuntimeStatus, "heartbeat" | "agentVersion">;

/** The node's status, of all that is known of it. Pure. */
export function nodeStatus(
  states: ReadonlyMap<string, ProfileState>,
  samples: ReadonlyMap<string, readonly number[]>,
  { observed, pods, engine, runtimeVersion, trials, vm }: Seen,
  conditions: Condition[],
  hostFacts: HostFacts,
): ShownStatus {
  const { kvm, vhostVsock, vhostNet, nested } = vm ?? hostFacts.vm;
  const profiles = [...states].map(
    ([name, state]): ProfileStatus =>
      statusOf(name, state, { ...startsOf(samples.get(name) ?? []), ...podsOf(pods.get(name) ?? []) }),
  );
  return {
    ...(observed === undefined ? {} : { observedGeneration: observed }),
    conditions,
    ...(engine === undefined ? {} : { engine }),
    kernel: hostFacts.kernel,
    arch: hostFacts.arch,
    cgroup: hostFacts.cgroup,
    kvm: kvm.runs,
    ...(trials === undefined ? {} : { gvisorPlatforms: [...trials] }),
    virtualization: {
      kvmProblem: kvm.why.slice(0, 256),
      ...{ vhostVsock, vhostNet, nested },
    },
    ...(runtimeVersion === undefined ? {} : { runtimeVersion }),
    ready: `${profiles.filter(({ phase }) => phase === "Ready").length}/${profiles.length}`,
    profiles,
  };
}

function startsOf(samples: readonly number[]): Pick<ProfileStatus, "startSeconds"> {
  if (samples.length === 0) return {};
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (q: number): number => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0;
  return { startSeconds: { p50: at(0.5), p99: at(0.99) } };
}

function podsOf(pods: readonly Pod[]): Pick<ProfileStatus, "pods"> {
  // Left out rather than empty: server-side apply makes null of a map that lost its last entry.
  if (pods.length === 0) return {};
  const counts = [...Map.groupBy(pods, ({ namespace }) => namespace)].map(
    ([namespace, list]) => [namespace, list.length] as const,
  );
  return { pods: Object.fromEntries(counts) };
}
