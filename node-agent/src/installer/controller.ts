import { setTimeout as sleep } from "node:timers/promises";
import type { DesiredProfile, NodeRuntimeStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { rootSpan } from "@bulkhead/lib/tracing/span.ts";
import { NodeEngine } from "../engine/serve.ts";
import { type Desired, type Happening, isThrough } from "../protocol.ts";
import { Artifacts } from "./artifact/artifacts.ts";
import { podRecords } from "./artifact/run.ts";
import { executorsOf, factsOf, type Installer, servesNow } from "./context.ts";
import { findKubelet } from "./facts.ts";
import { notServable } from "./kubelet/holder.ts";
import { Ledger } from "./ledger.ts";
import { formerSocket, planStale, usesRuntime } from "./plan.ts";
import { listPods } from "./pods.ts";
import { Profiles } from "./profiles.ts";
import { removeOthers } from "./removal.ts";
import { OwnRuntime } from "./runtime.ts";
import type { ProfileState } from "./state.ts";
import { execute } from "./steps.ts";
import { Walls } from "./walls.ts";
import { Wanted } from "./wanted.ts";

/**
 * Brings the node to what is desired and keeps it there. One pass at a time:
 *
 *   facts → plan the runtime → steps → for each profile: plan → steps → canary → plan the kubelet → steps
 *
 * A pass that fails puts back what stood before it: the runtime's last version, the profile's last good revision,
 * the kubelet's former endpoint. The kubelet is pointed at Bulkhead only after a canary has passed.
 */

export type ControllerOptions = Omit<Installer, "ledger" | "walls" | "wanted"> & {
  instance: string;
  /** HOST[:PORT][/PATH] that is asked for every artifact; undefined: the registry that its image names. */
  artifactRegistry?: string | undefined;
};

/** How often the node is looked at when nothing is due: drift, pods, the engine's version. */
const refreshMs = 10_000;

export class Controller {
  readonly #installer: Installer;
  readonly #artifacts: Artifacts;
  readonly #profiles: Profiles;
  readonly #runtime: OwnRuntime;
  readonly #nodeEngine: NodeEngine;
  #desired: Desired | undefined;
  /** The trace of the change that is under way. */
  #traceparent: string | undefined;
  #wake: () => void = () => undefined;

  constructor(options: ControllerOptions) {
    const ledger = new Ledger(options);
    this.#installer = { ...options, ledger, walls: new Walls(options), wanted: new Wanted() };
    this.#artifacts = new Artifacts({
      ...options,
      registry: options.artifactRegistry,
      note: (reason, message, type) => ledger.note(reason, message, type),
      condition: (holds, reason, message) => ledger.condition("ArtifactsIntact", holds, reason, message),
      wake: () => this.#wake(),
    });
    this.#profiles = new Profiles(this.#installer, this.#artifacts);
    this.#runtime = new OwnRuntime(this.#installer);
    this.#nodeEngine = new NodeEngine(this.#installer, this.#artifacts);
  }

  /** Takes a new desired state. A repeated one only says that the reporter is alive. */
  want(desired: Desired, traceparent?: string): void {
    const changed = JSON.stringify(desired) !== JSON.stringify(this.#desired);
    this.#desired = desired;
    if (!changed) return;
    this.#traceparent = traceparent;
    this.#installer.wanted.take(desired.profiles);
    this.#installer.log.info(
      { generation: desired.generation, profiles: desired.profiles.length },
      "desired state changed",
    );
    for (const part of [this.#runtime, this.#profiles, this.#artifacts, this.#nodeEngine]) part.hurry();
    this.#wake();
  }

  report(): { instance: string; version: number; happenings: Happening[]; status: NodeRuntimeStatus } {
    return this.#installer.ledger.report();
  }

  /** Resolves when the report is newer than `version`, or when the signal aborts. */
  newer(version: number, signal: AbortSignal): Promise<void> {
    return this.#installer.ledger.newer(version, signal);
  }

  async run(signal: AbortSignal): Promise<void> {
    const { ledger, log } = this.#installer;
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      const desired = this.#desired;
      if (desired !== undefined) {
        this.#installer.wanted.begin();
        try {
          const { generation } = desired;
          const attributes = { "bulkhead.generation": generation };
          await rootSpan("pass", { quiet: true, parent: this.#traceparent, attributes }, () =>
            this.#converge(desired, signal),
          );
          // A pass that a newer desired state overtook has observed only its own.
          ledger.see({ observed: desired.generation });
        } catch (error) {
          if (signal.aborted) return;
          log.error({ err: messageOf(error) }, "pass failed");
        }
        await this.#refresh(signal).catch((error: unknown) => {
          log.warn({ err: messageOf(error) }, "cannot look at the node");
        });
        if (desired === this.#desired && isThrough(ledger.report().status, desired.generation))
          this.#traceparent = undefined;
      }
      if (signal.aborted) return;
      const cancel = new AbortController();
      await Promise.race([
        woken,
        sleep(this.#idleMs(), undefined, { signal: AbortSignal.any([signal, cancel.signal]) }),
      ]).catch(() => undefined);
      cancel.abort();
    }
  }

  #idleMs(): number {
    const due = [this.#profiles, this.#nodeEngine, this.#runtime].flatMap((part) => part.due());
    return Math.max(50, Math.min(refreshMs, ...due.map((at) => at - performance.now())));
  }

  async #converge(desired: Desired, signal: AbortSignal): Promise<void> {
    const { ownership, host, log, ledger } = this.#installer;
    for (const { name, revision } of desired.profiles) {
      const good = servesNow(this.#installer, name);
      ledger.apply(name, { on: "wanted", revision, ...(good === undefined ? {} : { good }) });
    }
    const supported = await this.#supported(desired.profiles);
    const wanted = supported.filter(({ engine }) => engine === "bulkhead");
    const onNode = supported.filter(({ engine }) => engine === "node");

    await this.#artifacts.look(supported, signal);
    const facts = await factsOf(this.#installer, wanted, signal);
    await removeOthers(this.#installer, this.#profiles, desired.profiles, facts, signal);
    await execute(planStale(facts, await podRecords(host)), executorsOf(this.#installer), signal, log);
    await this.#artifacts.collect(supported, [...facts.files.values()]);
    const isThere = ({ name }: DesiredProfile): boolean => ledger.states.get(name)?.phase !== "Removing";
    if (onNode.length > 0 || ownership.record.engine !== undefined) {
      await this.#nodeEngine.converge(onNode.filter(isThere), formerSocket(facts), signal);
    }
    if (wanted.length === 0) {
      // What the node's own engine still has of ours is taken back first; or it stays, and our runtime alone goes.
      const node = ownership.record.engine !== undefined || onNode.length > 0;
      if (!node || (onNode.length > 0 && usesRuntime(facts))) await this.#leave(desired, signal);
      return;
    }
    if (this.#runtime.paused || !(await this.#runtime.install(wanted, signal))) return;
    await this.#profiles.serve(wanted, signal);
    const proven = wanted.filter(({ name }) => isProven(ledger.states.get(name)));
    if (proven.length > 0) await this.#runtime.front(wanted, signal);
    await this.#runtime.collect(wanted, signal);
  }

  /** The profiles that this node can serve; the others' states say why not. */
  async #supported(profiles: DesiredProfile[]): Promise<DesiredProfile[]> {
    const { walls, ledger } = this.#installer;
    await walls.look(profiles);
    const held = notServable(await findKubelet());
    return profiles.filter((profile) => {
      const why = walls.refusal(profile) ?? (profile.engine === "bulkhead" ? held : undefined);
      if (why !== undefined)
        ledger.fail(profile.name, "NotSupported", `Cannot serve profile "${profile.name}": ${why}`);
      return why === undefined;
    });
  }

  /** Nothing of ours is wanted: the node becomes what it was. */
  async #leave(desired: Desired, signal: AbortSignal): Promise<void> {
    const { ownership, ledger } = this.#installer;
    if (ownership.record.entries.length === 0) return;
    // A profile that waits for its pods still needs the runtime.
    const waiting = [...ledger.states].some(
      ([name, state]) => state.phase === "Removing" && !desired.profiles.some((p) => p.name === name),
    );
    if (waiting || this.#runtime.paused) return;
    await this.#runtime.leave(() => this.#artifacts.stop(), signal);
  }

  /** Takes up what changes without us: pods, versions. */
  async #refresh(signal: AbortSignal): Promise<void> {
    const { host, ownership, metrics, ledger, walls } = this.#installer;
    const { record } = ownership;
    const deadline = (): AbortSignal => AbortSignal.any([signal, AbortSignal.timeout(5000)]);
    const version = async (socket: string) => {
      using cri = connectCri(host.at(socket));
      return await cri.runtime.version({}, deadline());
    };
    const facts = await factsOf(this.#installer, [], signal);
    const serves = usesRuntime(facts) || record.engine !== undefined;
    ledger.see({
      trials: walls.trials(),
      vm: walls.vm,
      pods: serves ? await listPods(host, facts, signal) : new Map(),
    });
    if (usesRuntime(facts)) ledger.see({ runtimeVersion: (await version(paths.socket)).runtimeVersion });
    const socket = formerSocket(facts);
    if (socket !== undefined) {
      const engine = await version(socket).catch(() => undefined);
      const before = ledger.seen.engine;
      ledger.see({
        engine: {
          name: engine?.runtimeName ?? before?.name ?? "unknown",
          version: engine?.runtimeVersion ?? before?.version ?? "unknown",
          socket,
          fronted: record.kubelet !== undefined,
        },
      });
    }
    for (const [name, state] of ledger.states) {
      metrics.ready.set({ profile: name }, state.phase === "Ready" ? 1 : 0);
    }
    ledger.publish();
  }
}

/** A canary of this profile passed and a handler of it is loaded. */
function isProven(state: ProfileState | undefined): boolean {
  return (
    state?.phase === "Ready" ||
    state?.phase === "RolledBack" ||
    (state?.phase === "Verifying" && state.canary !== undefined) ||
    (state?.phase === "Failed" && state.serving)
  );
}
