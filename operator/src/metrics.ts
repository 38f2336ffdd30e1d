import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfileStatus } from "@bulkhead/lib/api/runtime-profile.ts";
import { Gauge, type Registry } from "prom-client";
import { amount } from "./runtime-class.ts";
import type { NodeState } from "./status.ts";
import type { Claims } from "./tenancy/facts.ts";

export type ProfileMetrics = {
  profile(
    name: string,
    is: {
      ready: boolean;
      states: Record<NodeState, number>;
      /** The reason of its condition Progressing. */
      progressing: string;
      /** Nodes that are ready for less than minReadySeconds. */
      soaking: number;
      /** Nodes whose pods are asked away, within the drain's deadline. */
      draining: number;
      pods: number;
      overhead?: RuntimeProfileStatus["overheadMemory"];
      tenancy?: Pick<Claims, "namespaces" | "outside"> & { enforced: boolean | undefined };
    },
  ): void;
  /** A profile that is gone must not go on being reported. */
  forget(name: string): void;
};

/** Namespaces of a profile that are told by name; the rest of them are added up under this one. */
const mostNamespaces = 100;
const otherNamespaces = "(others)";

/** The operator's own metrics; labels are bounded by the number of profiles, and 101 namespaces of each. */
export const profileMetrics = (registry: Registry): ProfileMetrics => {
  const registers = [registry];
  const ready = new Gauge({
    name: "bulkhead_profile_ready",
    help: "1 while the profile's condition Ready is True",
    labelNames: ["profile"] as const,
    registers,
  });
  const nodes = new Gauge({
    name: "bulkhead_profile_nodes",
    help: "Selected nodes by state: ready, updating, waiting, failed, unreachable",
    labelNames: ["profile", "state"] as const,
    registers,
  });
  const progressing = new Gauge({
    name: "bulkhead_profile_progressing",
    help: "1 with the reason of the profile's condition Progressing",
    labelNames: ["profile", "reason"] as const,
    registers,
  });
  const soaking = new Gauge({
    name: "bulkhead_profile_nodes_soaking",
    help: "Nodes that are ready on the newest revision for less than minReadySeconds",
    labelNames: ["profile"] as const,
    registers,
  });
  const draining = new Gauge({
    name: "bulkhead_profile_nodes_draining",
    help: "Nodes whose pods are evicted before they get the newest revision, until the deadline of rollout.drain",
    labelNames: ["profile"] as const,
    registers,
  });
  const pods = new Gauge({
    name: "bulkhead_profile_pods",
    help: "Pods of the profile's RuntimeClass that have not ended",
    labelNames: ["profile"] as const,
    registers,
  });
  const overhead = new Gauge({
    name: "bulkhead_profile_overhead_bytes",
    help: "Memory of a pod beside its containers: declared by the RuntimeClass, and measured, the most that a canary took",
    labelNames: ["profile", "kind"] as const,
    registers,
  });
  const enforced = new Gauge({
    name: "bulkhead_tenancy_enforced",
    help: "1 while the condition TenancyEnforced of a profile in mode Enforce is True",
    labelNames: ["profile"] as const,
    registers,
  });
  const namespaces = new Gauge({
    name: "bulkhead_tenancy_namespaces",
    help: "Namespaces that stand behind the profile's wall",
    labelNames: ["profile"] as const,
    registers,
  });
  const outside = new Gauge({
    name: "bulkhead_tenancy_pods_outside",
    help: "Pods of a profile's namespaces that run outside its wall; (others) beyond the 100 namespaces with the most",
    labelNames: ["profile", "namespace"] as const,
    registers,
  });
  const told = new Map<string, string[]>();
  const forgetTenancy = (profile: string) => {
    enforced.remove({ profile });
    namespaces.remove({ profile });
    for (const namespace of told.get(profile) ?? []) outside.remove({ profile, namespace });
    told.delete(profile);
  };
  const forgetOverhead = (profile: string) => {
    for (const kind of ["declared", "measured"]) overhead.remove({ profile, kind });
  };
  const reasons = new Map<string, string>();
  const forgetReason = (profile: string) => {
    const reason = reasons.get(profile);
    if (reason !== undefined) progressing.remove({ profile, reason });
    reasons.delete(profile);
  };
  const states: NodeState[] = ["ready", "updating", "waiting", "failed", "unreachable"];
  return {
    profile: (profile, is) => {
      ready.set({ profile }, is.ready ? 1 : 0);
      pods.set({ profile }, is.pods);
      for (const state of states) nodes.set({ profile, state }, is.states[state]);
      forgetReason(profile);
      progressing.set({ profile, reason: is.progressing }, 1);
      reasons.set(profile, is.progressing);
      soaking.set({ profile }, is.soaking);
      draining.set({ profile }, is.draining);
      forgetOverhead(profile);
      if (is.overhead) {
        overhead.set({ profile, kind: "declared" }, amount(is.overhead.declared));
        overhead.set({ profile, kind: "measured" }, amount(is.overhead.measured));
      }
      forgetTenancy(profile);
      if (!is.tenancy) return;
      if (is.tenancy.enforced !== undefined) enforced.set({ profile }, is.tenancy.enforced ? 1 : 0);
      namespaces.set({ profile }, is.tenancy.namespaces);
      const rest = is.tenancy.outside.slice(mostNamespaces);
      const shown = [
        ...is.tenancy.outside.slice(0, mostNamespaces),
        ...(rest.length > 0
          ? [{ namespace: otherNamespaces, pods: rest.reduce((sum, { pods }) => sum + pods, 0) }]
          : []),
      ];
      for (const { namespace, pods } of shown) outside.set({ profile, namespace }, pods);
      told.set(
        profile,
        shown.map(({ namespace }) => namespace),
      );
    },
    forget: (profile) => {
      ready.remove({ profile });
      pods.remove({ profile });
      forgetReason(profile);
      soaking.remove({ profile });
      draining.remove({ profile });
      forgetOverhead(profile);
      forgetTenancy(profile);
      for (const state of states) nodes.remove({ profile, state });
    },
  };
};

/** What agents say of themselves is theirs to write: so many kinds of nodes are told apart, the rest are one. */
const mostVersions = 50;

/** Nodes by the engine and the versions that their agents report, counted when Prometheus asks. */
export const fleetMetrics = (registry: Registry, nodeRuntimes: () => Iterable<NodeRuntime>): void => {
  new Gauge({
    name: "bulkhead_nodes",
    help: "Nodes by engine, and by version of agent and runtime",
    labelNames: ["engine", "agent", "runtime"] as const,
    registers: [registry],
    collect() {
      this.reset();
      const seen = new Set<string>();
      for (const { status } of nodeRuntimes()) {
        if (!status) continue;
        const labels = {
          engine: status.engine ? `${status.engine.name} ${status.engine.version}` : "",
          agent: status.agentVersion ?? "",
          runtime: status.runtimeVersion ?? "",
        };
        const key = JSON.stringify(labels);
        if (seen.size < mostVersions) seen.add(key);
        this.inc(seen.has(key) ? labels : { engine: "other", agent: "other", runtime: "other" });
      }
    },
  });
};
