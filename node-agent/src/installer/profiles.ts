import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { secondsOf } from "@bulkhead/lib/api/runtime-profile.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Artifacts } from "./artifact/artifacts.ts";
import { hasArtifact } from "./artifact/gate.ts";
import { executorsOf, factsOf, goodOf, type Installer, servesNow } from "./context.ts";
import { checkOf, profileFiles, programsOf } from "./files.ts";
import { type Facts, isFronted, type ProfilePlan, planProfile, planProfileRollback } from "./plan.ts";
import { ProbeError, prove } from "./prove.ts";
import { type Canary, retryDelay } from "./state.ts";
import { type Executors, execute } from "./steps.ts";
import { NotWanted, Overtaken } from "./wanted.ts";

/**
 * The profiles that our own runtime serves: each one's handler loaded and proven, or its last good one put back.
 * Handlers are loaded in turn; canaries run side by side, so that one that fails slowly holds no other profile up; and
 * each verdict is written down alone.
 */

/** One try at a profile: what is put in place, what was there, what served before, and why it could not be loaded. */
type Attempt = {
  profile: DesiredProfile;
  plan: ProfilePlan;
  facts: Facts;
  run: Executors;
  known: { revision: string; files: Record<string, string> } | undefined;
  failure?: { error: unknown };
};

export class Profiles {
  readonly #installer: Installer;
  readonly #artifacts: Artifacts;
  /** When each profile is to be tried or probed next, in performance.now() milliseconds. */
  readonly #due = new Map<string, number>();

  constructor(installer: Installer, artifacts: Artifacts) {
    this.#installer = installer;
    this.#artifacts = artifacts;
  }

  /** Something is wanted anew: no wait of an earlier failure holds it up. */
  hurry(): void {
    this.#due.clear();
  }

  /** When a pass is due next. */
  due(): number[] {
    return [...this.#due.values()];
  }

  /** A profile is gone. */
  forget(name: string): void {
    this.#due.delete(name);
  }

  /** A profile waits for its pods: another look soon. */
  lookAgain(name: string): void {
    this.#due.set(name, performance.now() + 2000);
  }

  /** Brings our runtime, which serves, to serve these profiles. Throws only when cancelled. */
  async serve(wanted: DesiredProfile[], signal: AbortSignal): Promise<void> {
    const attempts: Attempt[] = [];
    for (const profile of wanted) {
      const attempt = await this.#load(profile, signal);
      if (attempt !== undefined) attempts.push(attempt);
    }
    let turn = Promise.resolve();
    const judge = async (attempt: Attempt): Promise<void> => {
      const { profile, failure } = attempt;
      const canary =
        failure ?? (await prove(this.#installer, profile, signal).catch((error: unknown) => ({ error })));
      turn = turn.then(async () => {
        signal.throwIfAborted();
        // What is wanted instead comes with the next pass, at once.
        if ("error" in canary && canary.error instanceof Overtaken) return;
        if ("error" in canary && canary.error instanceof NotWanted) await this.#putBack(attempt);
        else if ("error" in canary) await this.#failed(attempt, canary.error);
        else await this.#passed(attempt, canary).catch((error: unknown) => this.#failed(attempt, error));
      });
      await turn;
    };
    await Promise.all(attempts.map(judge));
  }

  /** Puts a profile's handler in place. Undefined where nothing is to be done or proven now. */
  async #load(profile: DesiredProfile, signal: AbortSignal): Promise<Attempt | undefined> {
    const { name } = profile;
    const { log, ownership, ledger } = this.#installer;
    if (!hasArtifact(this.#installer, this.#artifacts, profile, () => this.#due.delete(name)))
      return undefined;
    const run = executorsOf(this.#installer, name);
    const due = performance.now() >= (this.#due.get(name) ?? 0);
    const plan = await this.#plan(profile, due, signal);
    const facts = await factsOf(this.#installer, [profile], signal);
    const steps = planProfile(facts, plan);
    const state = ledger.states.get(name);
    const settled = state?.phase === "Failed" || state?.phase === "RolledBack";
    if (!due && (settled || steps.length === 0)) return undefined;
    const known = ownership.record.profiles[name];
    const attempt: Attempt = { profile, plan, facts, run, known };
    try {
      if (plan.trouble !== undefined) throw new RuntimeError("failed-precondition", plan.trouble);
      if (steps.length > 0) {
        ledger.apply(name, { on: "installing" });
        const changed = Object.entries(known?.files ?? {}).filter(
          ([path, body]) => facts.files.get(path) !== body,
        );
        if (known?.revision === profile.revision && changed.length > 0) {
          const paths = changed.map(([path]) => path).join(", ");
          ledger.note("Drifted", `Files were changed and are put back: ${paths}`, "Warning", name);
        }
        await execute(steps, run, signal, log);
      }
      ledger.apply(name, { on: "verifying" });
      return attempt;
    } catch (error) {
      signal.throwIfAborted();
      return { ...attempt, failure: { error } };
    }
  }

  async #plan(profile: DesiredProfile, due: boolean, signal: AbortSignal): Promise<ProfilePlan> {
    const { manifest, walls } = this.#installer;
    const { platform, trouble } = await walls.platformOf(profile, due, signal);
    const node = walls.nodeOf(profile);
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

  /** What stood before a try that came to nothing. Resolves to the error of that, if there is one. */
  async #putBack({ profile, plan, facts, run, known }: Attempt): Promise<{ error: unknown } | undefined> {
    // It served well before: pods of it run. The handler stays, and the next canary decides.
    if (known?.revision === profile.revision) return undefined;
    const rollback = planProfileRollback(facts, plan);
    return execute(rollback, run, AbortSignal.timeout(60_000), this.#installer.log).then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
  }

  async #failed(attempt: Attempt, error: unknown): Promise<void> {
    const { profile, known } = attempt;
    const { name } = profile;
    const { ledger, metrics } = this.#installer;
    const canary = error instanceof ProbeError ? error.canary : undefined;
    const reason = error instanceof ProbeError ? "CanaryFailed" : "InstallFailed";
    const failed = { reason, message: messageOf(error), ...(canary === undefined ? {} : { canary }) };
    const failure = await this.#putBack(attempt);
    if (failure !== undefined)
      failed.message = `${failed.message}; putting the former state back failed too: ${messageOf(failure.error)}`;
    if (known === undefined || known.revision === profile.revision) {
      ledger.fail(name, reason, failed.message, canary, known !== undefined);
    } else {
      ledger.apply(name, { on: "rolled-back", good: servesNow(this.#installer, name) ?? "", ...failed });
      ledger.condition("RolledBack", true, reason, `Profile "${name}": ${failed.message}`);
      ledger.note(
        "RolledBack",
        `Revision ${profile.revision} failed and ${known.revision} was put back: ${failed.message}`,
        "Warning",
        name,
      );
    }
    this.#due.set(name, performance.now() + retryDelay(ledger.failures(name)));
    metrics.ready.set({ profile: name }, 0);
  }

  async #passed({ profile, plan, facts }: Attempt, canary: Canary): Promise<void> {
    const { ownership, ledger } = this.#installer;
    const { name, revision } = profile;
    const good = goodOf(this.#installer, { revision, files: plan.files });
    await ownership.update(({ profiles }) => ({ profiles: { ...profiles, [name]: good } }));
    ledger.sample(name, canary);
    this.#due.set(name, performance.now() + secondsOf(profile.probe.interval) * 1000);
    // Not Ready before pods of the profile can really come: the kubelet is pointed here first.
    if (isFronted(facts)) ledger.ready(name, revision, canary);
    else ledger.proven(name, revision, canary);
    ledger.publish();
  }
}
