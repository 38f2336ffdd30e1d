import { lstat, readFile, readlink } from "node:fs/promises";
import { join } from "node:path";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { secondsOf } from "@bulkhead/lib/api/runtime-profile.ts";
import { connectCri } from "@bulkhead/lib/cri/client.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";
import type { Artifacts } from "../installer/artifact/artifacts.ts";
import { hasArtifact } from "../installer/artifact/gate.ts";
import { executorsOf, goodOf, type Installer, servesNow } from "../installer/context.ts";
import { checkOf, programsOf, versionDirectory } from "../installer/files.ts";
import { endStaleStaticPods, staticPodsOf } from "../installer/kubelet/static-pods.ts";
import type { RecordFile } from "../installer/ownership.ts";
import type { Step } from "../installer/plan.ts";
import { ProbeError, prove } from "../installer/prove.ts";
import { type Canary, kubeletRetryDelay, retryDelay } from "../installer/state.ts";
import { execute } from "../installer/steps.ts";
import { NotWanted, Overtaken } from "../installer/wanted.ts";
import { adapters } from "./adapters.ts";
import { findEngine, monitorsIn } from "./detect.ts";
import type { Engine, EngineHandler, Reload } from "./engine.ts";
import { nodeHandler } from "./handler.ts";
import { planChange } from "./plan.ts";

/**
 * Profiles with `engine: node`: the node's own engine is told of their handlers. One pass:
 *
 *   find the engine → programs in place → its files, its own check, reload → canaries → out again what failed
 *
 * All handlers of the node go in by one change, so that an engine that has to be restarted is so at most twice, and
 * not at all when no byte of its files changes.
 */

/** One profile in this pass: what it would be told, and what served well before. */
type Attempt = {
  profile: DesiredProfile;
  files: Record<string, string>;
  handler: EngineHandler;
  good: RecordFile["profiles"][string] | undefined;
};

export class NodeEngine {
  readonly #installer: Installer;
  readonly #artifacts: Artifacts;
  /** When each profile is tried or probed next, in performance.now() milliseconds. */
  readonly #due = new Map<string, number>();
  #failures = 0;
  #retryAt = 0;
  /** An engine that is told by SIGHUP does not say what it has read: it is told once in each life of ours. */
  #told: number | undefined;
  /** The engine has to be restarted to be told. */
  #restarts = false;
  /** A canary failed on an engine that had taken its handler up at SIGHUP: perhaps by half, so it is restarted from now on. */
  #distrusts = false;
  /** What the engine calls the canary's image since it pulled it. */
  #image: string | undefined;
  /** Handlers whose canary is the kubelet's. */
  readonly #slow = new Set<string>();

  constructor(installer: Installer, artifacts: Artifacts) {
    this.#installer = installer;
    this.#artifacts = artifacts;
  }

  /** Something is wanted anew: no wait of an earlier failure holds it up. */
  hurry(): void {
    this.#due.clear();
    this.#retryAt = 0;
  }

  /** When a pass is due next. */
  due(): number[] {
    return [...this.#due.values(), ...(this.#retryAt > 0 ? [this.#retryAt] : [])];
  }

  /** Brings the engine behind `socket` to serve these profiles and none else of ours. Throws only when cancelled. */
  async converge(profiles: DesiredProfile[], socket: string | undefined, signal: AbortSignal): Promise<void> {
    const { ledger } = this.#installer;
    await endStaleStaticPods(this.#installer, socket);
    const now = performance.now();
    for (const name of this.#due.keys())
      if (!profiles.some((profile) => profile.name === name)) this.#due.delete(name);
    if (now < this.#retryAt) return;
    let engine: Engine;
    try {
      if (socket === undefined) {
        throw new RuntimeError(
          "failed-precondition",
          "Cannot find a kubelet that runs as a systemd service on this node",
        );
      }
      engine = await this.#find(socket, signal);
      if (engine.kind !== this.#installer.ownership.record.engine?.kind) await this.#refuseOther(engine);
    } catch (error) {
      this.#engineFailed(profiles, "EngineNotFound", error, signal);
      return;
    }
    let attempts: Attempt[] = [];
    for (const profile of profiles) {
      const attempt = await this.#prepare(engine, profile, signal);
      if (attempt !== undefined) attempts.push(attempt);
    }
    try {
      const { record } = this.#installer.ownership;
      const fresh = attempts.some(({ handler, good }) => !same(handler, good?.handler));
      const handlers = this.#handlers(profiles, attempts);
      const names = handlers.map(({ name }) => name).sort();
      const kept = !fresh && names.length > 0 && same(names, [...(record.engine?.handlers ?? [])].sort());
      await this.#tell(engine, handlers, { kept, leaving: profiles.length === 0 }, signal);
      this.#failures = 0;
      this.#retryAt = 0;
      const what = `${engine.unit} (${engine.kind} ${engine.version}) has the handlers`;
      if (profiles.length > 0) ledger.condition("EngineConfigured", true, "Serving", what);
    } catch (error) {
      // It runs as before: what served goes on to be proven.
      this.#engineFailed([], "EngineFailed", error, signal);
      const served = (attempt: Attempt): boolean => attempt.good?.revision === attempt.profile.revision;
      for (const attempt of attempts) if (!served(attempt)) await this.#failed(attempt, error, signal);
      attempts = attempts.filter(served);
      if (profiles.length === 0) return;
    }
    if (profiles.length === 0) await this.#forgetImage(engine, signal);
    let undo = false;
    const due = attempts.filter(({ profile }) => performance.now() >= (this.#due.get(profile.name) ?? 0));
    for (const { profile } of due) ledger.apply(profile.name, { on: "verifying" });
    const verify = async (attempt: Attempt): Promise<void> => {
      try {
        await this.#passed(attempt, await this.#probe(engine, attempt.profile, signal));
      } catch (error) {
        signal.throwIfAborted();
        // What is wanted instead comes with the next pass, at once, and the engine is told of both.
        if (error instanceof Overtaken) return;
        if (error instanceof NotWanted) {
          await this.#putBack(attempt);
          return;
        }
        if (engine.kind === "crio") this.#distrusts = true;
        undo = (await this.#failed(attempt, error, signal)) || undo;
      }
    };
    // On CRI-O each has to be through between two looks of the kubelet: one at a time.
    if (engine.kind === "crio") for (const attempt of due) await verify(attempt);
    else await Promise.all(due.map(verify));
    if (!undo) return;
    try {
      const today = await this.#find(engine.socket, signal);
      await this.#tell(today, this.#handlers(profiles, []), { kept: false, leaving: false }, signal);
    } catch (error) {
      this.#engineFailed([], "EngineFailed", error, signal);
    }
  }

  #find(socket: string, signal: AbortSignal): Promise<Engine> {
    const { host, ownership } = this.#installer;
    return findEngine(host, socket, ownership.record.engine, signal);
  }

  /** What was told to another kind of engine cannot be taken back from this one's files. */
  async #refuseOther(engine: Engine): Promise<void> {
    const { engine: record } = this.#installer.ownership.record;
    if (record === undefined) return;
    throw new RuntimeError(
      "failed-precondition",
      `Cannot configure ${engine.kind}: files of ${record.kind} still hold Bulkhead's handlers (${[...record.own, ...record.edited.map(({ path }) => path)].join(", ")}); remove the profiles first`,
    );
  }

  /** The handlers that the engine is to have: of each profile the one that is tried, or the one that served well. */
  #handlers(profiles: DesiredProfile[], attempts: Attempt[]): EngineHandler[] {
    const { record } = this.#installer.ownership;
    return profiles.flatMap(({ name }) => {
      const tried = attempts.find(({ profile }) => profile.name === name)?.handler;
      const handler = tried ?? record.profiles[name]?.handler;
      return handler === undefined ? [] : [handler];
    });
  }

  /** A profile's programs and files in place. Undefined where it failed, or failed before and is not due. */
  async #prepare(engine: Engine, profile: DesiredProfile, signal: AbortSignal): Promise<Attempt | undefined> {
    const { manifest, host, check, ownership, ledger, walls, log } = this.#installer;
    const { name } = profile;
    if (!hasArtifact(this.#installer, this.#artifacts, profile, () => this.#due.delete(name)))
      return undefined;
    const good = ownership.record.profiles[name];
    const before = ledger.states.get(name);
    const due = performance.now() >= (this.#due.get(name) ?? 0);
    const settled = before?.phase === "Failed" || before?.phase === "RolledBack";
    let files: Record<string, string> = {};
    try {
      const run = executorsOf(this.#installer, name);
      const programs = profile.artifact.image === undefined ? programsOf(profile) : [];
      const drifted = await check.drifted(manifest, host.at(versionDirectory(manifest.version)), signal);
      const missing = drifted.filter((file) => programs.includes(file));
      if (missing.length > 0) {
        if (settled && !due) return undefined;
        ledger.apply(name, { on: "installing" });
        await execute([{ do: "stage", version: manifest.version, files: missing }], run, signal, log);
        // What was put back is proven again.
        this.#due.delete(name);
      }
      const { platform, trouble } = await walls.platformOf(profile, due, signal);
      const node = walls.nodeOf(profile);
      const told = nodeHandler(profile, manifest.version, platform, node);
      files = told.files;
      const attempt: Attempt = { profile, ...told, good };
      if (settled && !due) return good?.revision === profile.revision ? attempt : undefined;
      if (trouble !== undefined) throw new RuntimeError("failed-precondition", trouble);
      const fresh = good?.revision !== profile.revision || !same(good.handler, attempt.handler);
      if (fresh) this.#refuseAlone(engine, told.handler);
      const steps: Step[] = [];
      if (fresh || missing.length > 0)
        steps.push({
          do: "check-program",
          argv: checkOf(profile, manifest.version, platform, node),
        });
      for (const [path, body] of Object.entries(files)) {
        const today = await readFile(host.at(path), "utf8").catch(() => undefined);
        if (today !== body) steps.push({ do: "write", path, body });
      }
      steps.push(...(await this.#places(engine, told.handler)));
      if (steps.length > 0) {
        ledger.apply(name, { on: "installing" });
        this.#due.delete(name);
      }
      await execute(steps, run, signal, log);
      return attempt;
    } catch (error) {
      signal.throwIfAborted();
      await this.#failed({ profile, files, good }, error, signal);
      return undefined;
    }
  }

  /** Throws where the engine cannot be told of this very handler, which is no other profile's trouble. */
  #refuseAlone(engine: Engine, handler: EngineHandler): void {
    try {
      adapters[engine.kind].plan(engine, [handler], this.#installer.ownership.record.engine);
    } catch (error) {
      // What else is wrong is the engine's, and is found when all are told to it.
      if (hasCode(error, "unimplemented") || hasCode(error, "already-exists")) throw error;
    }
  }

  /** What a handler needs beside its programs and files, where it is missing. */
  async #places(engine: Engine, { alias, directory, shim, program }: EngineHandler): Promise<Step[]> {
    const { host } = this.#installer;
    const steps: Step[] = [];
    if (alias !== undefined && engine.kind === "crio") {
      const target = shim ?? program;
      if ((await readlink(host.at(alias)).catch(() => undefined)) !== target)
        steps.push({ do: "alias", path: alias, target });
    }
    if (directory !== undefined && (await lstat(host.at(directory)).catch(() => undefined)) === undefined)
      steps.push({ do: "tree", path: directory });
    return steps;
  }

  /**
   * Makes the engine's files say these handlers and the engine read them; on failure both are as before. `kept`: they
   * are the handlers that it had, so that what differs somebody else changed. `leaving`: nobody wants one any more.
   */
  async #tell(
    engine: Engine,
    handlers: EngineHandler[],
    { kept, leaving }: { kept: boolean; leaving: boolean },
    signal: AbortSignal,
  ): Promise<void> {
    const { ownership, log, ledger } = this.#installer;
    const { record } = ownership;
    const change = adapters[engine.kind].plan(engine, handlers, record.engine);
    let reload = reloadOf(engine, change.reload, { leaving, distrusts: this.#distrusts });
    this.#restarts = mayRestart(reload);
    const unread = await this.#unread(engine, reload);
    const planned = (reload: Reload) =>
      planChange(engine, { ...change, reload }, record.engine, handlers, unread);
    if (planned(reload).load.length === 0) return;
    if (this.#restarts && (await endsContainers(engine))) reload = withoutRestart(engine, reload);
    const plan = planned(reload);
    if (kept) {
      const changed = plan.files.flatMap((step) =>
        step.do === "write" || step.do === "edit" ? [step.path] : [],
      );
      if (changed.length > 0)
        ledger.note(
          "Drifted",
          `The engine's files were changed and get the handlers again: ${changed.join(", ")}`,
          "Warning",
        );
    }
    const run = executorsOf(this.#installer);
    let read = false;
    try {
      await execute(plan.files, run, signal, log);
      read = true;
      await execute(plan.load, run, signal, log);
      this.#told = engine.pid;
    } catch (error) {
      signal.throwIfAborted();
      let outcome = read ? "its former configuration serves again" : "it was not touched";
      try {
        const back = read ? [...plan.back, ...plan.reload] : plan.back;
        await execute(back, run, AbortSignal.timeout(300_000), log);
      } catch (failure) {
        outcome = `putting its former configuration back failed too: ${messageOf(failure)}`;
      }
      const message = `Telling ${engine.unit} failed: ${messageOf(error)}; ${outcome}`;
      ledger.note("RolledBack", message, "Warning");
      throw new RuntimeError("failed-precondition", message, { cause: error });
    }
  }

  /** The engine has perhaps not read what its files say: an installer ended between the two. */
  async #unread(engine: Engine, reload: Reload): Promise<boolean> {
    const { ownership, host } = this.#installer;
    const { engine: record } = ownership.record;
    if (engine.kind === "crio") return record?.pending === true;
    if (reload.by === "hup") return this.#told !== engine.pid && record !== undefined;
    // It was started before they were last changed.
    const files = [...(record?.own ?? []), ...(record?.edited ?? []).map(({ path }) => path)];
    for (const path of files) {
      const stat = await lstat(host.at(path)).catch(() => undefined);
      if (stat !== undefined && stat.ctimeMs > engine.startedAt + 1000) return true;
    }
    return false;
  }

  async #probe(engine: Engine, profile: DesiredProfile, signal: AbortSignal): Promise<Canary> {
    const { host, bundle } = this.#installer;
    const layout = join(bundle, "canary");
    const { manifest, config } = await canaryDigests(layout);
    return prove(this.#installer, profile, signal, {
      socket: engine.socket,
      id: this.#image ?? idOf(engine, config),
      name: `127.0.0.1/bulkhead/canary@${manifest}`,
      awaitsLook: engine.kind === "crio",
      slow: this.#slow,
      staticPods: (each) => staticPodsOf(this.#installer, profile.name, each),
      pull: async (cri, each) => {
        await using registry = await host.serveLayout(layout, each);
        const image = `127.0.0.1:${registry.port}/bulkhead/canary@${manifest}`;
        const { imageRef } = await cri.image.pullImage({ image: { image } }, each);
        this.#image = imageRef;
        return imageRef;
      },
    });
  }

  /** The last profile gone, the canary's image goes too. An engine that keeps it loses some megabytes to its own cleaning. */
  async #forgetImage(engine: Engine, signal: AbortSignal): Promise<void> {
    const { host, bundle, log } = this.#installer;
    try {
      using cri = connectCri(host.at(host.real(engine.socket)));
      const { config } = await canaryDigests(join(bundle, "canary"));
      const image = this.#image ?? idOf(engine, config);
      await cri.image.removeImage(
        { image: { image } },
        AbortSignal.any([signal, AbortSignal.timeout(20_000)]),
      );
    } catch (error) {
      log.warn({ err: messageOf(error) }, "cannot remove the canary's image");
    }
  }

  async #passed({ profile, files, handler, good }: Attempt, canary: Canary): Promise<void> {
    const { ownership, ledger } = this.#installer;
    const { name, revision } = profile;
    const proven = goodOf(this.#installer, { revision, files, handler });
    await ownership.update(({ profiles }) => ({ profiles: { ...profiles, [name]: proven } }));
    for (const path of Object.keys(good?.files ?? {})) if (!(path in files)) await ownership.restore(path);
    this.#due.set(name, performance.now() + secondsOf(profile.probe.interval) * 1000);
    ledger.sample(name, canary);
    ledger.ready(name, revision, canary);
    ledger.publish();
  }

  /** A profile's files as they were before a try that came to nothing. */
  async #putBack({ profile, files, good }: Pick<Attempt, "profile" | "files" | "good">): Promise<void> {
    // It served well before: pods of it run. The handler stays, and the next canary decides.
    if (good?.revision === profile.revision) return;
    const back = Object.keys(files).map((path): Step => {
      const body = good?.files[path];
      return body === undefined ? { do: "restore", path } : { do: "write", path, body };
    });
    const { log } = this.#installer;
    await execute(back, executorsOf(this.#installer, profile.name), AbortSignal.timeout(60_000), log).catch(
      (failure: unknown) => log.warn({ err: messageOf(failure) }, "cannot put a profile's files back"),
    );
  }

  /** Writes a failure down. True when the engine has to be told again: the handler that was tried goes. */
  async #failed(
    attempt: Pick<Attempt, "profile" | "files" | "good">,
    error: unknown,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { ledger } = this.#installer;
    const { profile, good } = attempt;
    const { name, revision } = profile;
    const canary = error instanceof ProbeError ? error.canary : undefined;
    const refused = hasCode(error, "unimplemented");
    const reason = canary !== undefined ? "CanaryFailed" : refused ? "NotSupported" : "InstallFailed";
    const message = messageOf(error);
    const served = good?.revision === revision;
    await this.#putBack(attempt);
    signal.throwIfAborted();
    if (served || good?.handler === undefined) {
      ledger.fail(name, reason, message, canary, served);
    } else {
      ledger.apply(name, {
        on: "rolled-back",
        good: servesNow(this.#installer, name) ?? "",
        reason,
        message,
        ...(canary === undefined ? {} : { canary }),
      });
      ledger.note(
        "RolledBack",
        `Revision ${revision} failed and ${good.revision} was put back: ${message}`,
        "Warning",
        name,
      );
    }
    // A canary needs the engine restarted before it and, when it fails, after it: such a try comes less often.
    const delay = canary !== undefined && this.#restarts ? kubeletRetryDelay : retryDelay;
    this.#due.set(name, performance.now() + delay(ledger.failures(name)));
    return !served;
  }

  #engineFailed(profiles: DesiredProfile[], reason: string, error: unknown, signal: AbortSignal): void {
    signal.throwIfAborted();
    const { ledger, ownership } = this.#installer;
    const message = messageOf(error);
    this.#failures++;
    this.#retryAt = performance.now() + retryDelay(this.#failures);
    ledger.condition("EngineConfigured", false, reason, message);
    const { record } = ownership;
    for (const { name, revision } of profiles) {
      // Proven again as soon as the engine is back.
      this.#due.delete(name);
      ledger.fail(name, reason, message, undefined, record.profiles[name]?.revision === revision);
    }
  }
}

/** How an engine takes a change up, by what is known of it besides. */
function reloadOf(
  { unit }: Engine,
  reload: Reload,
  { leaving, distrusts }: { leaving: boolean; distrusts: boolean },
): Reload {
  if (reload.by !== "hup" || reload.asked === undefined) return reload;
  const { asked, ...hup } = reload;
  // Its pods have ended and its class is gone: what the engine would still start for it nobody asks for.
  if (leaving) return hup;
  return distrusts ? { by: "restart", unit } : reload;
}

const mayRestart = (reload: Reload): boolean =>
  reload.by === "restart" || (reload.by === "hup" && reload.asked !== undefined);

/** The same without a restart, which would end containers. Throws where nothing else takes the change up. */
function withoutRestart({ unit, killMode }: Engine, reload: Reload): Reload {
  const stays = `Cannot restart ${unit}: its KillMode is ${killMode}, which would end its containers; set KillMode=process`;
  if (reload.by !== "hup" || reload.asked === undefined) throw new RuntimeError("failed-precondition", stays);
  return { ...reload, asked: { ...reload.asked, stays } };
}

/** A restart of the engine's unit ends containers: it ends all that is in the unit, and they or their monitors are. */
const endsContainers = async ({ kind, unit, killMode }: Engine): Promise<boolean> =>
  killMode !== "process" && (kind !== "crio" || (await monitorsIn(unit)) > 0);

/** An image's id in the engine's words: CRI-O takes what begins with sha256: for a name. */
const idOf = ({ kind }: Engine, digest: string): string =>
  kind === "crio" ? digest.replace("sha256:", "") : digest;

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

const Index = z.object({ manifests: z.tuple([z.object({ digest: z.string() })]) });
const ImageManifest = z.object({ config: z.object({ digest: z.string() }) });

/** The digests of the one image of an OCI layout: of its manifest, and of its configuration, which is its id. */
async function canaryDigests(layout: string): Promise<{ manifest: string; config: string }> {
  const json = async (...path: string[]): Promise<unknown> =>
    JSON.parse(await readFile(join(layout, ...path), "utf8"));
  const manifest = Index.parse(await json("index.json")).manifests[0].digest;
  const { config } = ImageManifest.parse(await json("blobs", ...manifest.split(":")));
  return { manifest, config: config.digest };
}
