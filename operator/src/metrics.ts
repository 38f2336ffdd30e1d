import { Gauge, type Registry } from "prom-client";
import type { NodeState } from "./status.ts";

export type ProfileMetrics = {
  profile(name: string, is: { ready: boolean; states: Record<NodeState, number>; pods: number }): void;
  /** A profile that is gone must not go on being reported. */
  forget(name: string): void;
};

/** The operator's own metrics; labels are bounded by the number of profiles. */
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
  const pods = new Gauge({
    name: "bulkhead_profile_pods",
    help: "Pods of the profile's RuntimeClass that have not ended",
    labelNames: ["profile"] as const,
    registers,
  });
  const states: NodeState[] = ["ready", "updating", "waiting", "failed", "unreachable"];
  return {
    profile: (profile, is) => {
      ready.set({ profile }, is.ready ? 1 : 0);
      pods.set({ profile }, is.pods);
      for (const state of states) nodes.set({ profile, state }, is.states[state]);
    },
    forget: (profile) => {
      ready.remove({ profile });
      pods.remove({ profile });
      for (const state of states) nodes.remove({ profile, state });
    },
  };
};
