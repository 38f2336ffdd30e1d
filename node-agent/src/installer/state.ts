import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Good } from "./ownership.ts";

/**
 * The life of one profile on one node. Pure.
 *
 *   Pending → Installing → Verifying ─ passed → Ready
 *                 │            └────── failed → RolledBack   when an earlier revision could be put back
 *                 └─────────── failed → Failed               when there is none
 *   Ready ─ canary failed → Failed ─ canary passed → Ready   the handler stays: pods of the profile still run
 *   any ── no longer wanted → Removing → (gone)
 */

export type Canary = NonNullable<ProfileStatus["canary"]>;

export type ProfileState =
  | { phase: "Pending"; revision: string; good?: string }
  | { phase: "Installing"; revision: string; good?: string }
  | { phase: "Verifying"; revision: string; good?: string; canary?: Canary }
  | { phase: "Ready"; revision: string; canary: Canary }
  | {
      phase: "Failed";
      revision: string;
      reason: string;
      message: string;
      /** In a row; the next try waits accordingly. */
      failures: number;
      /** The revision's handler is loaded: it served well once. */
      serving: boolean;
      canary?: Canary;
    }
  | {
      phase: "RolledBack";
      /** The one that was tried. */
      revision: string;
      /** The one that serves; "" while no canary of it has passed since the node booted. */
      good: string;
      reason: string;
      message: string;
      failures: number;
      canary?: Canary;
    }
  | { phase: "Removing"; revision: string; pods: string[] };

export type ProfileEvent =
  | { on: "wanted"; revision: string; good?: string }
  | { on: "installing" }
  | { on: "verifying" }
  | { on: "passed"; canary: Canary }
  | {
      on: "failed";
      reason: string;
      message: string;
      /** The revision served well once and its handler is still loaded. */
      serving: boolean;
      canary?: Canary;
    }
  | { on: "rolled-back"; good: string; reason: string; message: string; canary?: Canary }
  | { on: "removing"; pods: string[] };

/** The state after an event. `undefined` before: the profile is new here. */
export function next(state: ProfileState | undefined, event: ProfileEvent): ProfileState {
  const revision = state?.revision ?? "";
  const good = state !== undefined && "good" in state ? state.good : undefined;
  const kept = good === undefined ? {} : { good };
  switch (event.on) {
    case "wanted":
      if (state !== undefined && state.revision === event.revision && state.phase !== "Removing")
        return state;
      return {
        phase: "Pending",
        revision: event.revision,
        ...(event.good === undefined ? {} : { good: event.good }),
      };
    case "installing":
      // A retry keeps showing why the last try failed until it has a result of its own.
      return state?.phase === "Failed" || state?.phase === "RolledBack" || state?.phase === "Ready"
        ? state
        : { phase: "Installing", revision, ...kept };
    case "verifying":
      return state?.phase === "Pending" || state?.phase === "Installing"
        ? { phase: "Verifying", revision, ...kept }
        : (state ?? { phase: "Verifying", revision });
    case "passed":
      return { phase: "Ready", revision, canary: event.canary };
    case "failed": {
      const canary = event.canary ?? (state !== undefined && "canary" in state ? state.canary : undefined);
      return {
        phase: "Failed",
        revision,
        reason: event.reason,
        message: event.message,
        failures: failuresOf(state) + 1,
        serving: event.serving,
        ...(canary === undefined ? {} : { canary }),
      };
    }
    case "rolled-back":
      return {
        phase: "RolledBack",
        revision,
        good: event.good,
        reason: event.reason,
        message: event.message,
        failures: failuresOf(state) + 1,
        ...(event.canary === undefined ? {} : { canary: event.canary }),
      };
    case "removing":
      return { phase: "Removing", revision, pods: event.pods };
  }
}

/**
 * The revision that served well and still does. After another boot, perhaps of another kernel, nothing is known of it
 * until a canary has passed: a profile's pods do not come on the word of a boot that is over.
 */
export const servesSince = (good: Good | undefined, boot: string): string | undefined =>
  good?.boot === undefined || good.boot === boot ? good?.revision : undefined;

const failuresOf = (state: ProfileState | undefined): number =>
  state?.phase === "Failed" || state?.phase === "RolledBack" ? state.failures : 0;

/** Milliseconds until a profile that failed is tried again: 5 s, doubling to 5 minutes. */
export const retryDelay = (failures: number): number => Math.min(5000 * 2 ** (failures - 1), 300_000);

/** Milliseconds until the kubelet is pointed here again after it did not come up: 1 minute, doubling to an hour. */
export const kubeletRetryDelay = (failures: number): number =>
  Math.min(60_000 * 2 ** (failures - 1), 3_600_000);

const clip = (text: string): string => (text.length > 1024 ? `${text.slice(0, 1021)}…` : text);

/** The state as NodeRuntime.status shows it. */
export function statusOf(
  name: string,
  state: ProfileState,
  extra: Pick<ProfileStatus, "startSeconds" | "pods">,
): ProfileStatus {
  const base = { name, phase: state.phase, ...extra };
  const canary = "canary" in state && state.canary !== undefined ? { canary: state.canary } : {};
  switch (state.phase) {
    case "Pending":
    case "Installing":
    case "Verifying":
      return {
        ...base,
        ...canary,
        revision: state.good ?? "",
        attemptedRevision: state.revision,
        reason: state.phase,
        message: {
          Pending: "Waiting for the agent to begin",
          Installing: "Putting files in place",
          Verifying: "Starting a canary behind the wall",
        }[state.phase],
      };
    case "Ready":
      return {
        ...base,
        ...canary,
        revision: state.revision,
        reason: "CanaryPassed",
        message: clip(
          // Without its latency: a message that changes is news, to be written and planned.
          `A canary started and saw kernel ${state.canary.kernel}`,
        ),
      };
    case "Failed":
      return {
        ...base,
        ...canary,
        revision: state.serving ? state.revision : "",
        ...(state.serving ? {} : { attemptedRevision: state.revision }),
        reason: state.reason,
        message: clip(state.message),
      };
    case "RolledBack":
      return {
        ...base,
        ...canary,
        revision: state.good,
        attemptedRevision: state.revision,
        reason: state.reason,
        message: clip(
          state.good === ""
            ? `No canary of the former revision has passed since the node booted: ${state.message}`
            : `Revision ${state.good} serves again: ${state.message}`,
        ),
      };
    case "Removing":
      return {
        ...base,
        revision: state.revision,
        reason: state.pods.length > 0 ? "PodsRunning" : "Removing",
        message: clip(
          state.pods.length > 0
            ? `Waiting for pods: ${state.pods.slice(0, 10).join(", ")}${state.pods.length > 10 ? ` and ${state.pods.length - 10} more` : ""}`
            : "Taking the handler away",
        ),
      };
  }
}
