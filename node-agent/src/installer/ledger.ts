import type { NodeRuntimeStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition } from "@bulkhead/lib/api/runtime-profile.ts";
import { setCondition } from "@bulkhead/lib/kube/conditions.ts";
import type { Logger } from "pino";
import type { Happening } from "../protocol.ts";
import type { HostFacts } from "./facts.ts";
import type { InstallerMetrics } from "./metrics.ts";
import { type Canary, next, type ProfileEvent, type ProfileState, statusOf } from "./state.ts";
import { nodeStatus, type Seen, type ShownStatus } from "./status.ts";

/**
 * What is known of the node and told of it: the state of each profile, what happened, conditions, and the status made
 * of them. The parts of the installer write here; the reporter reads by version.
 */

type LedgerOptions = { instance: string; hostFacts: HostFacts; metrics: InstallerMetrics; log: Logger };

const keptHappenings = 100;
const keptSamples = 100;

export class Ledger {
  readonly #options: LedgerOptions;
  readonly #states = new Map<string, ProfileState>();
  readonly #samples = new Map<string, number[]>();
  #conditions: Condition[] = [];
  #happenings: Happening[] = [];
  #seq = 0;
  #seen: Seen = {
    observed: undefined,
    pods: new Map(),
    engine: undefined,
    runtimeVersion: undefined,
    trials: undefined,
    vm: undefined,
  };
  #version = 0;
  #status: ShownStatus = {};
  readonly #watchers = new Set<() => void>();

  constructor(options: LedgerOptions) {
    this.#options = options;
  }

  get states(): ReadonlyMap<string, ProfileState> {
    return this.#states;
  }

  get seen(): Readonly<Seen> {
    return this.#seen;
  }

  report(): { instance: string; version: number; happenings: Happening[]; status: NodeRuntimeStatus } {
    return {
      instance: this.#options.instance,
      version: this.#version,
      happenings: this.#happenings,
      status: this.#status,
    };
  }

  /** Resolves when the report is newer than `version`, or when the signal aborts. */
  async newer(version: number, signal: AbortSignal): Promise<void> {
    if (this.#version > version || signal.aborted) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#watchers.add(resolve);
    signal.addEventListener("abort", () => resolve(), { once: true });
    await promise;
    this.#watchers.delete(resolve);
  }

  /** Takes up what a look at the node found. */
  see(seen: Partial<Seen>): void {
    this.#seen = { ...this.#seen, ...seen };
  }

  /** Brings a profile's state forward by an event. */
  apply(name: string, event: ProfileEvent): void {
    const before = this.#states.get(name);
    const after = next(before, event);
    if (after === before) return;
    this.#states.set(name, after);
    if (
      after.phase !== before?.phase &&
      (after.phase === "Installing" || after.phase === "Verifying" || after.phase === "Removing")
    ) {
      const { message } = statusOf(name, after, {});
      this.note(after.phase, message, "Normal", name);
    }
    this.publish();
  }

  /** How often in a row a profile has failed by now, at least once. */
  failures(name: string): number {
    const state = this.#states.get(name);
    return state !== undefined && "failures" in state ? state.failures : 1;
  }

  /** A profile failed. `serving`: its revision served well once, and its handler is still loaded. */
  fail(name: string, reason: string, message: string, canary?: Canary, serving = false): void {
    const before = this.#states.get(name);
    const final = reason === "NotSupported";
    if (final && before?.phase === "Failed" && before.reason === reason) return;
    this.apply(name, {
      on: "failed",
      reason,
      message,
      serving,
      ...(canary === undefined ? {} : { canary }),
    });
    if (before?.phase !== "Failed" || before.message !== message) this.note(reason, message, "Warning", name);
    this.#options.metrics.ready.set({ profile: name }, 0);
    this.publish();
  }

  /** A revision's canary passed: its pods can come when the kubelet is pointed here, and then it is ready. */
  proven(name: string, revision: string, canary: Canary): void {
    this.#states.set(name, { phase: "Verifying", revision, canary });
  }

  /** A revision's canary passed, and its pods can come. */
  ready(name: string, revision: string, canary: Canary): void {
    const before = this.#states.get(name);
    this.#states.set(name, next({ phase: "Verifying", revision }, { on: "passed", canary }));
    this.#options.metrics.ready.set({ profile: name }, 1);
    if (before?.phase !== "Ready" || before.revision !== revision) {
      this.note(
        "Ready",
        `Canary passed in ${canary.startSeconds.toFixed(2)} s: ${canary.assertions.join(", ") || "started"}; kernel ${canary.kernel}`,
        "Normal",
        name,
      );
    }
    const others = [...this.#states.values()];
    if (others.every((state) => state.phase === "Ready")) {
      this.condition("RolledBack", false, "Serving", "Every profile serves in its wanted revision");
    }
  }

  /** How long a canary took, for the status' quantiles. */
  sample(name: string, { startSeconds }: Canary): void {
    this.#samples.set(name, [...(this.#samples.get(name) ?? []), startSeconds].slice(-keptSamples));
  }

  /** A profile is gone from this node. */
  forget(name: string): void {
    this.#states.delete(name);
    this.#samples.delete(name);
    this.#options.metrics.forget(name);
  }

  /** Nothing of ours is on this node any more, so nothing holds of it. */
  clear(): void {
    this.#conditions = [];
    this.see({ engine: undefined });
  }

  /** Tells people what happened, to a profile or to the node. */
  note(reason: string, message: string, type: "Normal" | "Warning" = "Normal", profile?: string): void {
    const { log } = this.#options;
    log[type === "Normal" ? "info" : "warn"]({ reason, profile, detail: message }, "happened");
    this.#seq++;
    const happening = { seq: this.#seq, at: new Date().toISOString(), type, reason, message };
    this.#happenings = [
      ...this.#happenings,
      profile === undefined ? happening : { ...happening, profile },
    ].slice(-keptHappenings);
    this.publish(true);
  }

  conditionOf(type: string): Condition | undefined {
    return this.#conditions.find((condition) => condition.type === type);
  }

  condition(type: string, holds: boolean, reason: string, message: string): void {
    const clipped = message.slice(0, 1024);
    this.#conditions = setCondition(
      this.#conditions,
      { type, status: holds ? "True" : "False", reason, message: clipped },
      Date.now(),
    );
  }

  /** Makes the status anew; who waits for a newer one gets it where something changed, or with `force`. */
  publish(force = false): void {
    const status = nodeStatus(
      this.#states,
      this.#samples,
      this.#seen,
      this.#conditions,
      this.#options.hostFacts,
    );
    if (!force && JSON.stringify(status) === JSON.stringify(this.#status)) return;
    this.#status = status;
    this.#version++;
    for (const resolve of this.#watchers) resolve();
  }
}
