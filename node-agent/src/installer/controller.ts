import { accessSync, constants, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { canaryNamespace } from "@bulkhead/lib/api/group.ts";
import { vmSettings } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile, NodeRuntimeStatus, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import type { Condition } from "@bulkhead/lib/api/runtime-profile.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { setCondition } from "@bulkhead/lib/kube/conditions.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import { NodeEngine } from "../engine/serve.ts";
import { type Elsewhere, runCanary, runSeenCanary } from "../probe/canary.ts";
import { judge } from "../probe/wall.ts";
import type { Desired, Happening } from "../protocol.ts";
import { type ArtifactState, Artifacts } from "./artifact/artifacts.ts";
import { podRecords } from "./artifact/run.ts";
import type { BundleCheck, Manifest } from "./bundle.ts";
import { busyVersions, gatherFacts, type HostFacts } from "./facts.ts";
import {
  checkOf,
  handlerFile,
  installed,
  isVm,
  kvmProbe,
  profileFiles,
  programRoot,
  programsOf,
  runtimeConfig,
  unitFile,
  unsupported,
  wallOf,
} from "./files.ts";
import type { Host } from "./host.ts";
import { vmFacts } from "./kata/facts.ts";
import type { VmFacts } from "./kata/node.ts";
import type { InstallerMetrics } from "./metrics.ts";
import type { Ownership } from "./ownership.ts";
import {
  type Facts,
  formerSocket,
  isFronted,
  type ProfilePlan,
  planCollect,
  planEngine,
  planEngineRollback,
  planFilesRemoval,
  planKubelet,
  planLeave,
  planProfile,
  planProfileRollback,
  planRemoval,
  planStale,
  usesRuntime,
} from "./plan.ts";
import { choosePlatform, type Trial, tryPlatforms } from "./platform.ts";
import { shimPath } from "./shim.ts";
import {
  type Canary,
  kubeletRetryDelay,
  next,
  type ProfileEvent,
  type ProfileState,
  retryDelay,
  secondsOf,
  statusOf,
} from "./state.ts";
import { execute, executors } from "./steps.ts";

/**
 * Brings the node to what is desired and keeps it there. One pass at a time:
 *
 *   facts → plan the engine → steps → for each profile: plan → steps → canary → plan the kubelet → steps
 *
 * A pass that fails puts back what stood before it: the engine's last version, the profile's last good revision,
 * the kubelet's former endpoint. The kubelet is pointed at Bulkhead only after a canary has passed.
 */

export type ControllerOptions = {
  host: Host;
  hostFacts: HostFacts;
  ownership: Ownership;
  bundle: string;
  manifest: Manifest;
  check: BundleCheck;
  metrics: InstallerMetrics;
  log: Logger;
  instance: string;
  /** HOST[:PORT][/PATH] that is asked for every artifact; undefined: the registry that its image names. */
  artifactRegistry?: string | undefined;
};

/** How often the node is looked at when nothing is due: drift, pods, the engine's version. */
const refreshMs = 10_000;
const probeDeadlineMs = 120_000;
const keptHappenings = 100;
const keptSamples = 100;

export class Controller {
  readonly #options: ControllerOptions;
  readonly #states = new Map<string, ProfileState>();
  readonly #samples = new Map<string, number[]>();
  /** When each profile is to be tried or probed next, in performance.now() milliseconds. */
  readonly #due = new Map<string, number>();
  #engineDue = 0;
  #engineFailures = 0;
  /** Why the kubelet could not be pointed here, and when to try again: each try restarts it twice. */
  #kubelet: { failures: number; due: number; message: string } | undefined;
  #desired: Desired | undefined;
  #wake: () => void = () => undefined;
  #happenings: Happening[] = [];
  #seq = 0;
  #version = 0;
  #status: Omit<NodeRuntimeStatus, "heartbeat" | "agentVersion"> = {};
  #conditions: Condition[] = [];
  #pods = new Map<string, Pod[]>();
  #engine: NodeRuntimeStatus["engine"];
  #runtimeVersion: string | undefined;
  #observed: number | undefined;
  /** Of gVisor's platforms, by path of the runsc that tried them, the latest last. */
  readonly #trials = new Map<string, Trial[]>();
  #vm: VmFacts;
  readonly #watchers = new Set<() => void>();
  readonly #nodeEngine: NodeEngine;

  readonly #artifacts: Artifacts;

  constructor(options: ControllerOptions) {
    this.#options = options;
    this.#vm = options.hostFacts.vm;
    this.#artifacts = new Artifacts({
      ...options,
      registry: options.artifactRegistry,
      note: (reason, message, type) => this.#note(reason, message, type),
      condition: (holds, reason, message) => this.#condition("ArtifactsIntact", holds, reason, message),
      wake: () => this.#wake(),
    });
    this.#nodeEngine = new NodeEngine({
      ...options,
      note: this.#note.bind(this),
      condition: this.#condition.bind(this),
      state: (name) => this.#states.get(name),
      apply: this.#apply.bind(this),
      fail: (...failure) => {
        this.#fail(...failure);
        options.metrics.ready.set({ profile: failure[0] }, 0);
      },
      platform: this.#platformOf.bind(this),
      probe: (profile, at, signal) => this.#probe(profile, signal, at),
      ready: ({ name, revision }, canary) => {
        const before = this.#states.get(name);
        this.#sample(name, canary);
        this.#ready(name, revision, canary, before);
        this.#publish();
      },
    });
  }

  /** Takes a new desired state. A repeated one only says that the reporter is alive. */
  want(desired: Desired): void {
    const changed = JSON.stringify(desired) !== JSON.stringify(this.#desired);
    this.#desired = desired;
    if (!changed) return;
    this.#options.log.info(
      { generation: desired.generation, profiles: desired.profiles.length },
      "desired state changed",
    );
    this.#engineDue = 0;
    this.#due.clear();
    this.#artifacts.hurry();
    this.#nodeEngine.hurry();
    this.#wake();
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

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      const desired = this.#desired;
      if (desired !== undefined) {
        try {
          await this.#converge(desired, signal);
          // A pass that a newer desired state overtook has observed only its own.
          this.#observed = desired.generation;
        } catch (error) {
          if (signal.aborted) return;
          this.#options.log.error({ err: messageOf(error) }, "pass failed");
        }
        await this.#refresh(signal).catch((error: unknown) => {
          this.#options.log.warn({ err: messageOf(error) }, "cannot look at the node");
        });
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
    const due = [
      ...this.#due.values(),
      ...this.#nodeEngine.due(),
      ...(this.#engineDue > 0 ? [this.#engineDue] : []),
    ];
    return Math.max(50, Math.min(refreshMs, ...due.map((at) => at - performance.now())));
  }

  #managed(profiles: DesiredProfile[]): string[] {
    const names = [
      ...profiles.map(({ name }) => name),
      ...Object.keys(this.#options.ownership.record.profiles),
    ];
    return names.map(handlerFile);
  }

  async #facts(profiles: DesiredProfile[], signal: AbortSignal): Promise<Facts> {
    const { host, ownership, manifest, check } = this.#options;
    return gatherFacts(host, ownership, { manifest, check }, this.#managed(profiles), signal);
  }

  async #converge(desired: Desired, signal: AbortSignal): Promise<void> {
    const { manifest, ownership, host, bundle, log } = this.#options;
    const has = (path: string): boolean => manifest.files.some((file) => file.path === path);
    const note = this.#note.bind(this);
    const context = { host, ownership, bundle, manifest, log };
    const run = executors({ ...context, note: (reason, message, type) => note(reason, message, type) });

    for (const profile of desired.profiles) {
      const good = ownership.record.profiles[profile.name]?.revision;
      this.#apply(profile.name, {
        on: "wanted",
        revision: profile.revision,
        ...(good === undefined ? {} : { good }),
      });
    }
    const supported: DesiredProfile[] = [];
    // Modules are loaded and Kata is installed while we run.
    if (desired.profiles.some(isVm)) this.#vm = await vmFacts(host, join(bundle, kvmProbe));
    for (const profile of desired.profiles) {
      const why = unsupported(profile, { has, vm: this.#vm, shim: this.#shimOf(profile) });
      if (why === undefined) supported.push(profile);
      else this.#fail(profile.name, "NotSupported", `Cannot serve profile "${profile.name}": ${why}`);
    }

    const wanted = supported.filter(({ engine }) => engine === "bulkhead");
    const onNode = supported.filter(({ engine }) => engine === "node");

    await this.#artifacts.look(wanted, signal);
    let facts = await this.#facts(wanted, signal);
    await this.#removeOthers(desired, facts, signal);
    await execute(planStale(facts, await podRecords(host)), run, signal, log);
    await this.#artifacts.collect(wanted, [...facts.files.values()]);
    const isThere = ({ name }: DesiredProfile): boolean => this.#states.get(name)?.phase !== "Removing";
    if (onNode.length > 0 || ownership.record.engine !== undefined) {
      await this.#nodeEngine.converge(onNode.filter(isThere), formerSocket(facts), signal);
    }
    if (wanted.length === 0) {
      // What the node's own engine still has of ours is taken back first; or it stays, and our runtime alone goes.
      const node = ownership.record.engine !== undefined || onNode.length > 0;
      if (!node || (onNode.length > 0 && usesRuntime(facts))) await this.#leave(desired, signal);
      return;
    }
    if (performance.now() < this.#engineDue) return;

    facts = await this.#facts(wanted, signal);
    const former = formerSocket(facts);
    const engineSteps = former === undefined ? [] : planEngine(facts, this.#engineFiles(former));
    try {
      if (former === undefined) {
        throw new RuntimeError(
          "failed-precondition",
          "Cannot find a kubelet that runs as a systemd service on this node",
        );
      }
      if (engineSteps.some((step) => step.do !== "await-runtime")) {
        for (const { name } of wanted) this.#apply(name, { on: "installing" });
        this.#drift(facts);
      }
      await execute(engineSteps, run, signal, log);
      this.#engineFailures = 0;
      this.#engineDue = 0;
      this.#condition("RuntimeReady", true, "Serving", `The runtime serves ${paths.socket}`);
    } catch (error) {
      signal.throwIfAborted();
      await this.#engineFailed(facts, former, wanted, error, run, signal);
      return;
    }

    await this.#serve(wanted, signal);

    const proven = wanted.filter(({ name }) => this.#proven(name));
    if (proven.length > 0) await this.#frontKubelet(wanted, run, signal);
    const after = await this.#facts(wanted, signal);
    await execute(planCollect(after, manifest.version, await busyVersions()), run, signal, log);
  }

  /** A canary of this profile passed and a handler of it is loaded. */
  #proven(name: string): boolean {
    const state = this.#states.get(name);
    return (
      state?.phase === "Ready" ||
      state?.phase === "RolledBack" ||
      (state?.phase === "Verifying" && state.canary !== undefined) ||
      (state?.phase === "Failed" && state.serving)
    );
  }

  #engineFiles(former: string): { version: string; config: string; unit: string } {
    const { version } = this.#options.manifest;
    return { version, config: runtimeConfig(version, former), unit: unitFile() };
  }

  /** Says which of our files somebody else changed: they are about to be put right. */
  #drift(facts: Facts): void {
    const { manifest } = this.#options;
    if (facts.current !== manifest.version) return;
    const edited = [paths.config, installed.unit].filter((path) => facts.edited.has(path));
    const disabled = facts.enabled ? [] : [installed.wanted];
    const all = [...facts.drifted, ...edited, ...disabled];
    if (all.length === 0) return;
    const more = all.length > 5 ? ` and ${all.length - 5} more` : "";
    this.#note(
      "Drifted",
      `Files of version ${manifest.version} were changed or removed and are put back: ${all.slice(0, 5).join(", ")}${more}`,
      "Warning",
    );
  }

  async #engineFailed(
    before: Facts,
    former: string | undefined,
    wanted: DesiredProfile[],
    error: unknown,
    run: ReturnType<typeof executors>,
    signal: AbortSignal,
  ): Promise<void> {
    const { log } = this.#options;
    const message = messageOf(error);
    const untouched = before.kubelet === undefined && before.record.entries.length === 0;
    let outcome = "nothing was changed";
    if (!untouched && former !== undefined) {
      // Putting nothing back would take the runtime away from a kubelet that it serves: then it is kept running.
      const fronting = before.record.kubelet !== undefined && before.current === undefined;
      try {
        if (!fronting) {
          const back = planEngineRollback(before, this.#engineFiles(former));
          await execute(back, run, AbortSignal.timeout(120_000), log);
        }
        outcome =
          before.current === undefined
            ? "everything was removed again"
            : `version ${before.current} was put back`;
      } catch (failure) {
        outcome = `putting the former state back failed too: ${messageOf(failure)}`;
      }
      this.#condition("RolledBack", true, "EngineFailed", `${message}; ${outcome}`);
      this.#note("RolledBack", `Installing the runtime failed: ${message}; ${outcome}`, "Warning");
    }
    signal.throwIfAborted();
    this.#condition("RuntimeReady", false, "EngineFailed", message);
    this.#engineFailures++;
    this.#engineDue = performance.now() + retryDelay(this.#engineFailures);
    for (const { name } of wanted) this.#fail(name, "EngineFailed", `${message}; ${outcome}`);
  }

  /**
   * Every profile's handler loaded and proven, or its last good one put back. Handlers are loaded in turn; canaries run
   * side by side, so that one that fails slowly holds no other profile up; and each verdict is written down alone.
   */
  async #serve(wanted: DesiredProfile[], signal: AbortSignal): Promise<void> {
    const attempts: Attempt[] = [];
    for (const profile of wanted) {
      const attempt = await this.#load(profile, signal);
      if (attempt !== undefined) attempts.push(attempt);
    }
    let turn = Promise.resolve();
    const prove = async (attempt: Attempt): Promise<void> => {
      const { profile, failure } = attempt;
      const canary = failure ?? (await this.#probe(profile, signal).catch((error: unknown) => ({ error })));
      turn = turn.then(async () => {
        signal.throwIfAborted();
        if ("error" in canary) await this.#failed(attempt, canary.error);
        else await this.#passed(attempt, canary).catch((error: unknown) => this.#failed(attempt, error));
      });
      await turn;
    };
    await Promise.all(attempts.map(prove));
  }

  /** Puts a profile's handler in place. Undefined where nothing is to be done or proven now. */
  async #load(profile: DesiredProfile, signal: AbortSignal): Promise<Attempt | undefined> {
    const { name } = profile;
    const { log, ownership, host, bundle, manifest } = this.#options;
    if (!this.#hasArtifact(profile)) return undefined;
    const run = executors({
      host,
      ownership,
      bundle,
      manifest,
      log,
      note: (reason, message, type) => this.#note(reason, message, type, name),
    });
    const due = performance.now() >= (this.#due.get(name) ?? 0);
    const plan = await this.#profilePlan(profile, due, signal);
    const facts = await this.#facts([profile], signal);
    const steps = planProfile(facts, plan);
    const state = this.#states.get(name);
    const settled = state?.phase === "Failed" || state?.phase === "RolledBack";
    if (!due && (settled || steps.length === 0)) return undefined;
    const known = ownership.record.profiles[name];
    const attempt: Attempt = { profile, plan, facts, run, known };
    try {
      if (plan.trouble !== undefined) throw new RuntimeError("failed-precondition", plan.trouble);
      if (steps.length > 0) {
        this.#apply(name, { on: "installing" });
        const changed = Object.entries(known?.files ?? {}).filter(
          ([path, body]) => facts.files.get(path) !== body,
        );
        if (known?.revision === profile.revision && changed.length > 0) {
          const paths = changed.map(([path]) => path).join(", ");
          this.#note("Drifted", `Files were changed and are put back: ${paths}`, "Warning", name);
        }
        await execute(steps, run, signal, log);
      }
      this.#apply(name, { on: "verifying" });
      return attempt;
    } catch (error) {
      signal.throwIfAborted();
      return { ...attempt, failure: { error } };
    }
  }

  /** The profile's artifact is there, whole and unchanged. Where it is not, the profile's state says so. */
  #hasArtifact(profile: DesiredProfile): boolean {
    const { name, revision } = profile;
    const artifact: ArtifactState = this.#artifacts.stateOf(profile);
    const state = this.#states.get(name);
    const shown = state !== undefined && "reason" in state ? state : undefined;
    if (artifact.is === "there") {
      // It was waited for: no other pause counts.
      if (shown?.reason.startsWith("Artifact") === true) this.#due.delete(name);
      return true;
    }
    if (artifact.is === "on-its-way") {
      this.#apply(name, { on: "installing" });
      return false;
    }
    const reason = artifact.is === "failed" ? "ArtifactFailed" : "ArtifactChanged";
    const { message } = artifact;
    if (shown?.reason === reason && shown.message === message) return false;
    const good = this.#options.ownership.record.profiles[name]?.revision;
    if (good === undefined || good === revision) {
      this.#fail(name, reason, message, undefined, good === revision);
    } else {
      // Nothing of the new revision came to the node: the last one serves as it did.
      this.#apply(name, { on: "rolled-back", good, reason, message });
      this.#note(reason, message, "Warning", name);
    }
    this.#options.metrics.ready.set({ profile: name }, 0);
    return false;
  }

  async #failed({ profile, plan, facts, run, known }: Attempt, error: unknown): Promise<void> {
    const { name } = profile;
    const { log } = this.#options;
    const canary = error instanceof ProbeError ? error.canary : undefined;
    const reason = error instanceof ProbeError ? "CanaryFailed" : "InstallFailed";
    const failed = { reason, message: messageOf(error), ...(canary === undefined ? {} : { canary }) };
    if (known?.revision === profile.revision) {
      // It served well before: pods of it run. The handler stays, and the next canary decides.
      this.#fail(name, reason, failed.message, canary, true);
    } else {
      const rollback = planProfileRollback(facts, plan);
      await execute(rollback, run, AbortSignal.timeout(60_000), log).catch((failure: unknown) => {
        failed.message = `${failed.message}; putting the former state back failed too: ${messageOf(failure)}`;
      });
      if (known === undefined) {
        this.#fail(name, failed.reason, failed.message, canary);
      } else {
        this.#apply(name, { on: "rolled-back", good: known.revision, ...failed });
        this.#condition("RolledBack", true, reason, `Profile "${name}": ${failed.message}`);
        this.#note(
          "RolledBack",
          `Revision ${profile.revision} failed and ${known.revision} serves again: ${failed.message}`,
          "Warning",
          name,
        );
      }
    }
    const after = this.#states.get(name);
    const failures = after !== undefined && "failures" in after ? after.failures : 1;
    this.#due.set(name, performance.now() + retryDelay(failures));
    this.#options.metrics.ready.set({ profile: name }, 0);
  }

  async #passed({ profile, plan, facts }: Attempt, canary: Canary): Promise<void> {
    const { ownership } = this.#options;
    const { name, revision } = profile;
    await ownership.update({
      profiles: { ...ownership.record.profiles, [name]: { revision, files: plan.files } },
    });
    const before = this.#states.get(name);
    this.#sample(name, canary);
    this.#due.set(name, performance.now() + secondsOf(profile.probe.interval) * 1000);
    // Not Ready before pods of the profile can really come: #frontKubelet says so.
    if (isFronted(facts)) this.#ready(name, profile.revision, canary, before);
    else this.#states.set(name, { phase: "Verifying", revision: profile.revision, canary });
    this.#publish();
  }

  #sample(name: string, { startSeconds }: Canary): void {
    this.#samples.set(name, [...(this.#samples.get(name) ?? []), startSeconds].slice(-keptSamples));
  }

  #ready(name: string, revision: string, canary: Canary, before: ProfileState | undefined): void {
    this.#states.set(name, next({ phase: "Verifying", revision }, { on: "passed", canary }));
    this.#options.metrics.ready.set({ profile: name }, 1);
    if (before?.phase !== "Ready" || before.revision !== revision) {
      this.#note(
        "Ready",
        `Canary passed in ${canary.startSeconds.toFixed(2)} s: ${canary.assertions.join(", ") || "started"}; kernel ${canary.kernel}`,
        "Normal",
        name,
      );
    }
    const others = [...this.#states.values()];
    if (others.every((state) => state.phase === "Ready")) {
      this.#condition("RolledBack", false, "Serving", "Every profile serves in its wanted revision");
    }
  }

  async #frontKubelet(
    wanted: DesiredProfile[],
    run: ReturnType<typeof executors>,
    signal: AbortSignal,
  ): Promise<void> {
    const { log } = this.#options;
    try {
      const facts = await this.#facts(wanted, signal);
      const steps = planKubelet(facts);
      if (steps.length > 0 && this.#kubelet !== undefined && performance.now() < this.#kubelet.due) {
        const { message } = this.#kubelet;
        for (const { name } of wanted)
          this.#apply(name, { on: "failed", reason: "KubeletSwitchFailed", message, serving: false });
        return;
      }
      await execute(steps, run, signal, log);
      this.#kubelet = undefined;
      if (facts.kubelet !== undefined || steps.length > 0) {
        this.#condition("Fronting", true, "KubeletPointed", `The kubelet is served by ${paths.socket}`);
      }
      for (const { name, revision } of wanted) {
        const state = this.#states.get(name);
        if (state?.phase === "Verifying" && state.canary !== undefined)
          this.#ready(name, revision, state.canary, state);
      }
    } catch (error) {
      signal.throwIfAborted();
      const message = messageOf(error);
      const failures = (this.#kubelet?.failures ?? 0) + 1;
      this.#kubelet = { failures, due: performance.now() + kubeletRetryDelay(failures), message };
      this.#condition("Fronting", false, "KubeletSwitchFailed", message);
      this.#condition("RolledBack", true, "KubeletSwitchFailed", message);
      this.#note("KubeletSwitchFailed", message, "Warning");
      for (const { name } of wanted) this.#fail(name, "KubeletSwitchFailed", message);
    }
  }

  /** Takes away the handlers of profiles that are wanted no more, once their pods are gone. */
  async #removeOthers(desired: Desired, facts: Facts, signal: AbortSignal): Promise<void> {
    const { ownership, log, host, bundle, manifest, metrics } = this.#options;
    // A profile that went over to another engine goes from the first one like one that is wanted no more.
    const stays = desired.profiles.filter(({ name, engine }) => {
      const good = ownership.record.profiles[name];
      return good === undefined || (good.handler === undefined) === (engine === "bulkhead");
    });
    const wanted = new Set(stays.map(({ name }) => name));
    const known = new Set([...Object.keys(ownership.record.profiles), ...this.#states.keys()]);
    for (const name of known) {
      if (wanted.has(name)) continue;
      const good = ownership.record.profiles[name];
      const state = this.#states.get(name);
      const onNode = good?.handler !== undefined;
      if (good !== undefined && (facts.unitActive || onNode)) {
        const pods = (await this.#listPods(facts, signal)).get(name) ?? [];
        const running = pods.map((pod) => `${pod.namespace}/${pod.name}`);
        this.#apply(name, { on: "removing", pods: running });
        if (running.length > 0) {
          this.#due.set(name, performance.now() + 2000);
          continue;
        }
        const note = (reason: string, message: string, type?: "Normal" | "Warning"): void =>
          this.#note(reason, message, type, name);
        const run = executors({ host, ownership, bundle, manifest, log, note });
        const files = Object.keys(good.files);
        const steps = onNode ? planFilesRemoval(files) : planRemoval(facts, name, files);
        await execute(steps, run, signal, log);
      }
      const { [name]: _, ...profiles } = ownership.record.profiles;
      if (good !== undefined) await ownership.update({ profiles });
      this.#states.delete(name);
      this.#samples.delete(name);
      this.#due.delete(name);
      metrics.forget(name);
      if (state !== undefined)
        this.#note("Removed", `Profile "${name}" is gone from this node`, "Normal", name);
      const again = desired.profiles.find((profile) => profile.name === name);
      if (again !== undefined) this.#apply(name, { on: "wanted", revision: again.revision });
      this.#publish();
    }
  }

  /** Nothing of ours is wanted: the node becomes what it was. */
  async #leave(desired: Desired, signal: AbortSignal): Promise<void> {
    const { ownership, log, host, bundle, manifest } = this.#options;
    if (ownership.record.entries.length === 0) return;
    // A profile that waits for its pods still needs the runtime.
    const waiting = [...this.#states].some(
      ([name, state]) => state.phase === "Removing" && !desired.profiles.some((p) => p.name === name),
    );
    if (waiting || performance.now() < this.#engineDue) return;
    const note = this.#note.bind(this);
    const run = executors({
      host,
      ownership,
      bundle,
      manifest,
      log,
      note: (reason, message, type) => note(reason, message, type),
    });
    const facts = await this.#facts([], signal);
    try {
      await this.#artifacts.stop();
      await execute(planLeave(facts), run, signal, log);
      this.#kubelet = undefined;
      this.#runtimeVersion = undefined;
      if (ownership.record.entries.length > 0) {
        this.#note("RuntimeRemoved", "Our runtime is gone; the node's own engine serves its profiles");
        return;
      }
      this.#conditions = [];
      this.#engine = undefined;
      this.#note("Uninstalled", "The node is what it was before Bulkhead");
    } catch (error) {
      signal.throwIfAborted();
      this.#engineFailures++;
      this.#engineDue = performance.now() + retryDelay(this.#engineFailures);
      this.#condition("Leaving", false, "LeaveFailed", messageOf(error));
      this.#note("LeaveFailed", messageOf(error), "Warning");
    }
  }

  async #profilePlan(profile: DesiredProfile, due: boolean, signal: AbortSignal): Promise<ProfilePlan> {
    const { manifest } = this.#options;
    const { platform, trouble } = await this.#platformOf(profile, due, signal);
    const node = { ...this.#vm, shim: this.#shimOf(profile) };
    return {
      name: profile.name,
      revision: profile.revision,
      files: profileFiles(profile, manifest.version, platform, node),
      check: checkOf(profile, manifest.version, platform, node),
      version: manifest.version,
      programs: profile.artifact.image === undefined ? programsOf(profile) : [],
      ...(trouble === undefined ? {} : { trouble }),
    };
  }

  /** Where the shim of a profile of any shim stands: in our bundle, or where the node has it. */
  #shimOf(profile: DesiredProfile): string | undefined {
    if (profile.handler.shim === undefined) return undefined;
    const { host, manifest } = this.#options;
    return shimPath(profile, programRoot(profile, manifest.version), {
      // What an artifact holds is its own affair: the check of the program tells.
      brings: (path) =>
        profile.artifact.image !== undefined || manifest.files.some((file) => file.path === path),
      isProgram: (path) => isProgram(host, path),
    });
  }

  async #platformOf(
    profile: DesiredProfile,
    due: boolean,
    signal: AbortSignal,
  ): Promise<ReturnType<typeof choosePlatform>> {
    const { gvisor } = profile.handler;
    if (gvisor === undefined) return { platform: "systrap" };
    const { host, hostFacts, manifest, log } = this.#options;
    const runsc = join(programRoot(profile, manifest.version), "bin/runsc");
    const known = this.#trials.get(runsc);
    if (known !== undefined) {
      const choice = choosePlatform(gvisor.platform, known);
      // What did not work is tried again with the profile that asks for it: the program was mended, a device came.
      const works = choice.trouble === undefined && known.some((trial) => trial.works);
      if (works || !due) return choice;
    }
    const trials = await tryPlatforms(host, runsc, hostFacts.kvm, signal);
    this.#trials.delete(runsc);
    this.#trials.set(runsc, trials);
    log.info({ runsc, trials }, "gVisor's platforms tried");
    return choosePlatform(gvisor.platform, trials);
  }

  /** One canary, and a second one before a handler that served well is called broken. */
  async #probe(
    profile: DesiredProfile,
    signal: AbortSignal,
    at?: { socket: string } & Elsewhere,
  ): Promise<Canary> {
    const { host, hostFacts, metrics, log } = this.#options;
    const { name } = profile;
    const attempt = async (): Promise<Canary> => {
      using cri = connectCri(host.at(at === undefined ? paths.socket : host.real(at.socket)));
      const begun = new Date().toISOString();
      const failed = (message: string, rest: Partial<Canary> = {}): ProbeError =>
        new ProbeError(message, {
          passed: false,
          at: begun,
          startSeconds: 0,
          kernel: "",
          assertions: [],
          failures: metrics.failures(name) + 1,
          ...rest,
        });
      const soon = AbortSignal.any([signal, AbortSignal.timeout(probeDeadlineOf(profile))]);
      const result = await (at === undefined
        ? runCanary(cri, name, soon)
        : runSeenCanary(cri, name, soon, at)
      ).catch((error: unknown) => {
        signal.throwIfAborted();
        throw failed(`The canary of "${name}" failed: ${messageOf(error)}`);
      });
      const { wall, mark } = wallOf(profile);
      const verdict = judge(wall, result.view, hostFacts.view, mark, result.outside);
      const seen = {
        startSeconds: Math.round(result.startSeconds * 1000) / 1000,
        kernel: result.view.release.slice(0, 256),
        overheadBytes: result.outside.overheadBytes,
        assertions: verdict.assertions,
      };
      if (profile.probe.assertIsolation && verdict.broken.length > 0) {
        throw failed(
          `The canary of "${name}" ran, but its wall is not there: ${verdict.broken.join(", ")}`,
          seen,
        );
      }
      return { passed: true, at: begun, failures: metrics.failures(name), ...seen };
    };
    for (let tries = 1; ; tries++) {
      try {
        const canary = await attempt();
        metrics.passed(name, canary.startSeconds);
        log.info({ profile: name, seconds: canary.startSeconds, kernel: canary.kernel }, "canary passed");
        return canary;
      } catch (error) {
        signal.throwIfAborted();
        metrics.failed(name);
        log.warn({ profile: name, tries, err: messageOf(error) }, "canary failed");
        if (tries === 2) throw error;
        await sleep(1000, undefined, { signal });
      }
    }
  }

  /** Running pods by handler: as our runtime lists them, which are both engines', or else the node's own engine. */
  async #listPods(facts: Facts, signal: AbortSignal): Promise<Map<string, Pod[]>> {
    const { host } = this.#options;
    const socket = usesRuntime(facts) ? paths.socket : formerSocket(facts);
    if (socket === undefined) return new Map();
    using cri = connectCri(host.at(host.real(socket)));
    const { items } = await cri.runtime.listPodSandbox(
      {},
      AbortSignal.any([signal, AbortSignal.timeout(10_000)]),
    );
    const pods = new Map<string, Pod[]>();
    for (const { state, runtimeHandler, metadata } of items) {
      if (metadata === undefined || metadata.namespace === canaryNamespace) continue;
      if (state !== PodSandboxState.SANDBOX_READY) continue;
      const { namespace, name } = metadata;
      pods.set(runtimeHandler, [...(pods.get(runtimeHandler) ?? []), { namespace, name }]);
    }
    return pods;
  }

  /** Takes up what changes without us: pods, versions. */
  async #refresh(signal: AbortSignal): Promise<void> {
    const { host, ownership, metrics } = this.#options;
    const { record } = ownership;
    const deadline = (): AbortSignal => AbortSignal.any([signal, AbortSignal.timeout(5000)]);
    const version = async (socket: string) => {
      using cri = connectCri(host.at(socket));
      return await cri.runtime.version({}, deadline());
    };
    const facts = await this.#facts([], signal);
    const serves = usesRuntime(facts) || record.engine !== undefined;
    this.#pods = serves ? await this.#listPods(facts, signal) : new Map();
    if (usesRuntime(facts)) this.#runtimeVersion = (await version(paths.socket)).runtimeVersion;
    const socket = formerSocket(facts);
    if (socket !== undefined) {
      const engine = await version(socket).catch(() => undefined);
      this.#engine = {
        name: engine?.runtimeName ?? this.#engine?.name ?? "unknown",
        version: engine?.runtimeVersion ?? this.#engine?.version ?? "unknown",
        socket,
        fronted: record.kubelet !== undefined,
      };
    }
    for (const [name, state] of this.#states) {
      metrics.ready.set({ profile: name }, state.phase === "Ready" ? 1 : 0);
    }
    this.#publish();
  }

  #apply(name: string, event: ProfileEvent): void {
    const before = this.#states.get(name);
    const after = next(before, event);
    if (after === before) return;
    this.#states.set(name, after);
    if (
      after.phase !== before?.phase &&
      (after.phase === "Installing" || after.phase === "Verifying" || after.phase === "Removing")
    ) {
      const { message } = statusOf(name, after, {});
      this.#note(after.phase, message, "Normal", name);
    }
    this.#publish();
  }

  #fail(name: string, reason: string, message: string, canary?: Canary, serving = false): void {
    const before = this.#states.get(name);
    const final = reason === "NotSupported";
    if (final && before?.phase === "Failed" && before.reason === reason) return;
    this.#apply(name, {
      on: "failed",
      reason,
      message,
      serving,
      ...(canary === undefined ? {} : { canary }),
    });
    if (before?.phase !== "Failed" || before.message !== message)
      this.#note(reason, message, "Warning", name);
    this.#publish();
  }

  #note(reason: string, message: string, type: "Normal" | "Warning" = "Normal", profile?: string): void {
    const { log } = this.#options;
    log[type === "Normal" ? "info" : "warn"]({ reason, profile, detail: message }, "happened");
    this.#seq++;
    const happening = { seq: this.#seq, at: new Date().toISOString(), type, reason, message };
    this.#happenings = [
      ...this.#happenings,
      profile === undefined ? happening : { ...happening, profile },
    ].slice(-keptHappenings);
    this.#publish(true);
  }

  #condition(type: string, holds: boolean, reason: string, message: string): void {
    const clipped = message.slice(0, 1024);
    this.#conditions = setCondition(
      this.#conditions,
      { type, status: holds ? "True" : "False", reason, message: clipped },
      Date.now(),
    );
  }

  #publish(force = false): void {
    const { hostFacts } = this.#options;
    const profiles = [...this.#states].map(([name, state]): ProfileStatus => {
      const samples = (this.#samples.get(name) ?? []).toSorted((a, b) => a - b);
      const at = (q: number): number =>
        samples[Math.min(samples.length - 1, Math.floor(q * samples.length))] ?? 0;
      const pods = [...Map.groupBy(this.#pods.get(name) ?? [], ({ namespace }) => namespace)].map(
        ([namespace, list]) => [namespace, list.length] as const,
      );
      return statusOf(name, state, {
        ...(samples.length === 0 ? {} : { startSeconds: { p50: at(0.5), p99: at(0.99) } }),
        // Left out rather than empty: server-side apply makes null of a map that lost its last entry.
        ...(pods.length === 0 ? {} : { pods: Object.fromEntries(pods) }),
      });
    });
    const trials = [...this.#trials.values()].at(-1);
    const status: NodeRuntimeStatus = {
      ...(this.#observed === undefined ? {} : { observedGeneration: this.#observed }),
      conditions: this.#conditions,
      ...(this.#engine === undefined ? {} : { engine: this.#engine }),
      kernel: hostFacts.kernel,
      arch: hostFacts.arch,
      cgroup: hostFacts.cgroup,
      kvm: hostFacts.kvm,
      ...(trials === undefined ? {} : { gvisorPlatforms: trials }),
      virtualization: {
        kvmProblem: hostFacts.vm.kvm.why.slice(0, 256),
        vhostVsock: hostFacts.vm.vhostVsock,
        vhostNet: hostFacts.vm.vhostNet,
        nested: hostFacts.vm.nested,
      },
      ...(this.#runtimeVersion === undefined ? {} : { runtimeVersion: this.#runtimeVersion }),
      ready: `${profiles.filter(({ phase }) => phase === "Ready").length}/${profiles.length}`,
      profiles,
    };
    if (!force && JSON.stringify(status) === JSON.stringify(this.#status)) return;
    this.#status = status;
    this.#version++;
    for (const resolve of this.#watchers) resolve();
  }
}

type Pod = { namespace: string; name: string };

/** One try at a profile: what is put in place, what was there, what served before, and why it could not be loaded. */
type Attempt = {
  profile: DesiredProfile;
  plan: ProfilePlan;
  facts: Facts;
  run: ReturnType<typeof executors>;
  known: { revision: string; files: Record<string, string> } | undefined;
  failure?: { error: unknown };
};

/** A canary that did not pass, with what it had seen. */
class ProbeError extends Error {
  readonly canary: Canary;
  constructor(message: string, canary: Canary) {
    super(message);
    this.name = "ProbeError";
    this.canary = canary;
  }
}

/** A canary under emulation takes what its profile says that a guest may take, and a container in it. */
const probeDeadlineOf = ({ handler }: DesiredProfile): number => {
  if (handler.shim) {
    const { create, start } = handler.shim.deadlines;
    return probeDeadlineMs + (2 * create + start) * 1000;
  }
  const vm = vmSettings(handler);
  return probeDeadlineMs + (vm ? (vm.deadlines.boot + 2 * vm.deadlines.createContainer) * 1000 : 0);
};

/** The host has a program of this name that it can run. */
const isProgram = (host: Host, path: string): boolean => {
  try {
    const file = host.at(host.real(path));
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
};
