import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import type { RuntimeSettings } from "@bulkhead/lib/api/runtime-config.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { adapters } from "../engine/adapters.ts";
import { findEngine } from "../engine/detect.ts";
import { executorsOf, factsOf, type Installer, servesNow } from "./context.ts";
import { busyVersions } from "./facts.ts";
import { certsDirectory, configPathIn, installed, runtimeConfig, unitFile } from "./files.ts";
import {
  type EngineFiles,
  type Facts,
  formerSocket,
  planCollect,
  planEngine,
  planEngineRollback,
  planKubelet,
  planLeave,
} from "./plan.ts";
import { kubeletRetryDelay, retryDelay } from "./state.ts";
import { execute } from "./steps.ts";

/**
 * Our own runtime on the node: up and running in the wanted version, or its last one put back; before the kubelet, or
 * that pointed back at its former endpoint; and one day gone.
 */
export class OwnRuntime {
  readonly #installer: Installer;
  /** When it is tried again after it failed, in performance.now() milliseconds. */
  #retryAt = 0;
  #failures = 0;
  /** Why the kubelet could not be pointed here, and when to try again: each try restarts it twice. */
  #kubelet: { failures: number; due: number; message: string } | undefined;

  #registries: string | undefined;

  constructor(installer: Installer) {
    this.#installer = installer;
  }

  /** Something is wanted anew: no wait of an earlier failure holds it up. */
  hurry(): void {
    this.#retryAt = 0;
  }

  /** When a pass is due next. */
  due(): number[] {
    return this.#retryAt > 0 ? [this.#retryAt] : [];
  }

  /** It failed and is not tried now. */
  get paused(): boolean {
    return performance.now() < this.#retryAt;
  }

  /** Installs it for these profiles. False where that failed: what stood before is put back, and their states say so. */
  async install(wanted: DesiredProfile[], signal: AbortSignal): Promise<boolean> {
    const { ledger, log } = this.#installer;
    const facts = await factsOf(this.#installer, wanted, signal);
    const former = formerSocket(facts);
    const { runtimeSettings: given } = this.#installer;
    if ("problem" in given) return this.#refuse(facts, wanted, given.problem);
    let files: EngineFiles | undefined;
    try {
      if (former !== undefined) files = await this.#files(former, facts, given.settings, signal);
    } catch (error) {
      return this.#refuse(facts, wanted, messageOf(error));
    }
    const steps = files === undefined ? [] : planEngine(facts, files);
    try {
      if (former === undefined) {
        throw new RuntimeError(
          "failed-precondition",
          "Cannot find a kubelet that runs as a systemd service on this node",
        );
      }
      if (steps.some((step) => step.do !== "await-runtime")) {
        for (const { name } of wanted) ledger.apply(name, { on: "installing" });
        this.#drift(facts);
      }
      await execute(steps, executorsOf(this.#installer), signal, log);
      ledger.condition(
        "RuntimeConfigured",
        true,
        "Written",
        `The runtime has the configuration of ${paths.config}`,
      );
      this.#failures = 0;
      this.#retryAt = 0;
      ledger.condition("RuntimeReady", true, "Serving", `The runtime serves ${paths.socket}`);
      return true;
    } catch (error) {
      signal.throwIfAborted();
      await this.#failed(facts, files, wanted, error, signal);
      return false;
    }
  }

  /** Points the kubelet at it, once a profile is proven. */
  async front(wanted: DesiredProfile[], signal: AbortSignal): Promise<void> {
    const { ledger, log } = this.#installer;
    try {
      const facts = await factsOf(this.#installer, wanted, signal);
      const steps = planKubelet(facts);
      if (steps.length > 0 && this.#kubelet !== undefined && performance.now() < this.#kubelet.due) {
        const { message } = this.#kubelet;
        for (const { name } of wanted)
          ledger.apply(name, { on: "failed", reason: "KubeletSwitchFailed", message, serving: false });
        return;
      }
      await execute(steps, executorsOf(this.#installer), signal, log);
      this.#kubelet = undefined;
      if (facts.kubelet !== undefined || steps.length > 0) {
        ledger.condition("Fronting", true, "KubeletPointed", `The kubelet is served by ${paths.socket}`);
      }
      for (const { name, revision } of wanted) {
        const state = ledger.states.get(name);
        if (state?.phase === "Verifying" && state.canary !== undefined)
          ledger.ready(name, revision, state.canary);
      }
    } catch (error) {
      signal.throwIfAborted();
      const message = messageOf(error);
      const failures = (this.#kubelet?.failures ?? 0) + 1;
      this.#kubelet = { failures, due: performance.now() + kubeletRetryDelay(failures), message };
      ledger.condition("Fronting", false, "KubeletSwitchFailed", message);
      ledger.condition("RolledBack", true, "KubeletSwitchFailed", message);
      ledger.note("KubeletSwitchFailed", message, "Warning");
      for (const { name } of wanted) ledger.fail(name, "KubeletSwitchFailed", message);
    }
  }

  /** Removes versions that nothing refers to any more. */
  async collect(wanted: DesiredProfile[], signal: AbortSignal): Promise<void> {
    const { manifest, log } = this.#installer;
    const facts = await factsOf(this.#installer, wanted, signal);
    const steps = planCollect(facts, manifest.version, await busyVersions());
    await execute(steps, executorsOf(this.#installer), signal, log);
  }

  /** Takes it away: the node becomes what it was, but for what its own engine has of ours. `stop` ends other works. */
  async leave(stop: () => Promise<void>, signal: AbortSignal): Promise<void> {
    const { ownership, ledger, log } = this.#installer;
    const facts = await factsOf(this.#installer, [], signal);
    try {
      await stop();
      await execute(planLeave(facts), executorsOf(this.#installer), signal, log);
      this.#kubelet = undefined;
      ledger.see({ runtimeVersion: undefined });
      if (ownership.record.entries.length > 0) {
        ledger.note("RuntimeRemoved", "Our runtime is gone; the node's own engine serves its profiles");
        return;
      }
      ledger.clear();
      ledger.note("Uninstalled", "The node is what it was before Bulkhead");
    } catch (error) {
      signal.throwIfAborted();
      this.#pause();
      ledger.condition("Leaving", false, "LeaveFailed", messageOf(error));
      ledger.note("LeaveFailed", messageOf(error), "Warning");
    }
  }

  #pause(): void {
    this.#failures++;
    this.#retryAt = performance.now() + retryDelay(this.#failures);
  }

  /**
   * Where the engine that was here first has its registries. It is looked at until it answers once: it reads its files
   * when it starts, and one that is down is no reason to write others than there are.
   */
  async #registriesOf(former: string, facts: Facts, signal: AbortSignal): Promise<string> {
    const { host, ownership } = this.#installer;
    const soon = AbortSignal.any([signal, AbortSignal.timeout(5000)]);
    this.#registries ??= await findEngine(host, former, ownership.record.engine, soon).then(
      (engine) => adapters[engine.kind].registries?.(engine) ?? certsDirectory,
      () => undefined,
    );
    return this.#registries ?? configPathIn(facts.files.get(paths.config) ?? "") ?? certsDirectory;
  }

  async #files(
    former: string,
    facts: Facts,
    settings: RuntimeSettings,
    signal: AbortSignal,
  ): Promise<EngineFiles> {
    const { manifest, runtimeTracing, runtimeFiles, runtimeProxy } = this.#installer;
    const registries = await this.#registriesOf(former, facts, signal);
    const { version } = manifest;
    return {
      version,
      config: runtimeConfig(version, former, runtimeTracing, settings, registries),
      unit: unitFile(runtimeProxy),
      named: await runtimeFiles(),
    };
  }

  /** Settings that cannot be used: nothing is written, and what runs goes on as it is. True when that is this version. */
  #refuse(facts: Facts, wanted: DesiredProfile[], problem: string): boolean {
    const { ledger, manifest } = this.#installer;
    const known = ledger.conditionOf("RuntimeConfigured");
    ledger.condition("RuntimeConfigured", false, "InvalidRuntimeConfig", problem);
    if (known?.message !== problem.slice(0, 1024)) ledger.note("InvalidRuntimeConfig", problem, "Warning");
    if (facts.current === manifest.version && facts.unitActive) return true;
    for (const { name } of wanted)
      ledger.fail(
        name,
        "InvalidRuntimeConfig",
        problem,
        undefined,
        servesNow(this.#installer, name) !== undefined,
      );
    return false;
  }

  /** Says which of our files somebody else changed: they are about to be put right. */
  #drift(facts: Facts): void {
    const { manifest, ledger } = this.#installer;
    if (facts.current !== manifest.version) return;
    const edited = [paths.config, installed.unit].filter((path) => facts.edited.has(path));
    const disabled = facts.enabled ? [] : [installed.wanted];
    const all = [...facts.drifted, ...edited, ...disabled];
    if (all.length === 0) return;
    const more = all.length > 5 ? ` and ${all.length - 5} more` : "";
    ledger.note(
      "Drifted",
      `Files of version ${manifest.version} were changed or removed and are put back: ${all.slice(0, 5).join(", ")}${more}`,
      "Warning",
    );
  }

  async #failed(
    before: Facts,
    files: EngineFiles | undefined,
    wanted: DesiredProfile[],
    error: unknown,
    signal: AbortSignal,
  ): Promise<void> {
    const { log, ledger } = this.#installer;
    const message = messageOf(error);
    const untouched = before.kubelet === undefined && before.record.entries.length === 0;
    let outcome = "nothing was changed";
    if (!untouched && files !== undefined) {
      // Putting nothing back would take the runtime away from a kubelet that it serves: then it is kept running.
      const fronting = before.record.kubelet !== undefined && before.current === undefined;
      try {
        if (!fronting) {
          const back = planEngineRollback(before, files);
          await execute(back, executorsOf(this.#installer), AbortSignal.timeout(120_000), log);
        }
        outcome =
          before.current === undefined
            ? "everything was removed again"
            : `version ${before.current} was put back`;
      } catch (failure) {
        outcome = `putting the former state back failed too: ${messageOf(failure)}`;
      }
      ledger.condition("RolledBack", true, "EngineFailed", `${message}; ${outcome}`);
      ledger.note("RolledBack", `Installing the runtime failed: ${message}; ${outcome}`, "Warning");
    }
    signal.throwIfAborted();
    ledger.condition("RuntimeReady", false, "EngineFailed", message);
    this.#pause();
    for (const { name } of wanted) ledger.fail(name, "EngineFailed", `${message}; ${outcome}`);
  }
}
