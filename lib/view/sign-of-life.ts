import type { NodeRuntime } from "../api/node-runtime.ts";
import type { Lease } from "../kube/lease.ts";

/** A node's agent lives: it says so in its Lease, and in each status that it writes. The later of both counts. Pure. */

/** What is written as a time, in ms; undefined for what is none. */
export const timeOf = (text: string | undefined): number | undefined => {
  const time = text === undefined ? Number.NaN : Date.parse(text);
  return Number.isNaN(time) ? undefined : time;
};

/** When the agent was last heard, in ms. A Lease without any report is of another NodeRuntime, which is gone. */
export const heardOf = (runtime: NodeRuntime | undefined, lease: Lease | undefined): number | undefined => {
  const reported = timeOf(runtime?.status?.heartbeat);
  if (reported === undefined) return undefined;
  return Math.max(reported, timeOf(lease?.spec?.renewTime) ?? 0);
};

/** The NodeRuntime as it reads for people: its heartbeat is when the agent was last heard. */
export const asHeard = (runtime: NodeRuntime, lease: Lease | undefined): NodeRuntime => {
  const heard = heardOf(runtime, lease);
  return heard === undefined
    ? runtime
    : { ...runtime, status: { ...runtime.status, heartbeat: new Date(heard).toISOString() } };
};
