import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import { type BundleCheck, type Manifest, stageBundle } from "../bundle.ts";
import { exists } from "../facts.ts";
import { installed, versionDirectory } from "../files.ts";
import type { Host } from "../host.ts";
import type { InstallerMetrics } from "../metrics.ts";
import type { ArtifactRecord, Ownership } from "../ownership.ts";
import { retryDelay } from "../state.ts";
import { changedFiles } from "./check.ts";
import { type Found, needsRepair, nextOf, unused, type Wanted, wantedBy } from "./plan.ts";
import { busyArtifacts, fetchOnHost, verifyOnHost } from "./run.ts";

/**
 * The artifacts of a node: there before a profile's handler is loaded, held to their lists of digests, and gone after
 * their last user. To fetch one may take long, so it goes on beside the passes of the controller; all that is written
 * down is written by {@link Artifacts.look}, which no two passes call at a time.
 *
 *   (none) → on its way (list: null) → there (list) ─ changed → told, or fetched anew and put in its place
 *                                        └ no user left → on its way out (list: null) → (none)
 */

export type ArtifactsOptions = {
  host: Host;
  ownership: Ownership;
  bundle: string;
  manifest: Manifest;
  check: BundleCheck;
  metrics: Pick<InstallerMetrics, "artifact">;
  log: Logger;
  /** HOST[:PORT][/PATH] that stands for every registry. */
  registry: string | undefined;
  note: (reason: string, message: string, type?: "Normal" | "Warning") => void;
  /** ArtifactsIntact of the node. */
  condition: (holds: boolean, reason: string, message: string) => void;
  /** A work that went on beside the passes has ended: another pass takes it up. */
  wake: () => void;
};

/** What a profile has of its artifact now. */
export type ArtifactState =
  | { is: "there" }
  | { is: "on-its-way" }
  | { is: "failed"; message: string }
  | { is: "changed"; message: string };

/** A work that goes on beside the passes, and what became of it. */
type Work = {
  want: Wanted;
  kind: "fetch" | "verify" | "repair";
  stop: AbortController;
  /** Resolves when it has ended, whatever became of it. */
  over: Promise<void>;
  result?: { list?: string } | { error: unknown };
};

export class Artifacts {
  readonly #options: ArtifactsOptions;
  /** By hex; one work at a time for each. */
  readonly #works = new Map<string, Work>();
  /** By hex and policy. */
  readonly #failures = new Map<string, { message: string; count: number; due: number }>();
  #found = new Map<string, Found>();
  #told = "";

  constructor(options: ArtifactsOptions) {
    this.#options = options;
  }

  /** What failed is tried again at once: somebody changed what is wanted. */
  hurry(): void {
    this.#failures.clear();
  }

  /** Ends what goes on beside the passes: the node is given back. */
  async stop(): Promise<void> {
    for (const { stop } of this.#works.values()) stop.abort();
    await Promise.all([...this.#works.values()].map(({ over }) => over));
    this.#works.clear();
  }

  /** What the last {@link look} knows of a profile's artifact. */
  stateOf(profile: Pick<DesiredProfile, "artifact">): ArtifactState {
    const want = wantedBy(profile);
    if (want === undefined) return { is: "there" };
    const found = this.#found.get(want.hex);
    const failure = this.#failures.get(keyOf(want)) ?? this.#failures.get(keyOf(byDigest(want)));
    if (nextOf(found, want) !== "nothing")
      return failure === undefined ? { is: "on-its-way" } : { is: "failed", message: failure.message };
    if (found === undefined || found.changed.length === 0) return { is: "there" };
    const why = failure === undefined ? "" : `; ${failure.message}`;
    return { is: "changed", message: `${changeOf(found)}${why}` };
  }

  /** Takes up what went on, looks at what is there, and begins what is missing. */
  async look(profiles: readonly Pick<DesiredProfile, "artifact">[], signal: AbortSignal): Promise<void> {
    const wanted = profiles.map(wantedBy).filter((want) => want !== undefined);
    for (const [hex, work] of this.#works) {
      if (work.kind !== "repair" && !wanted.some((want) => want.hex === hex)) work.stop.abort();
      if (work.result === undefined) continue;
      this.#works.delete(hex);
      await this.#ended(work, work.result);
    }
    await this.#rememberRepair(wanted);
    await this.#check(signal);
    for (const want of wanted) await this.#begin(want, nextOf(this.#found.get(want.hex), want), signal);
    for (const [hex, found] of this.#found) {
      const same = byDigest({ hex, image: found.record.image });
      if (needsRepair(found)) await this.#begin(same, "repair", signal);
    }
  }

  /** Removes what nothing needs any more. `texts`: all that leads from our files to programs. */
  async collect(profiles: readonly Pick<DesiredProfile, "artifact">[], texts: string[]): Promise<void> {
    const { host, ownership, check, note } = this.#options;
    const names = await readdir(host.at(installed.artifacts)).catch(() => []);
    const record = ownership.record.artifacts ?? {};
    if (names.length === 0 && Object.keys(record).length === 0) return;
    const { artifacts: _, ...rest } = ownership.record;
    const wanted = new Set(profiles.flatMap((profile) => wantedBy(profile)?.hex ?? []));
    for (const hex of this.#works.keys()) wanted.add(hex);
    const there = new Set([...Object.keys(record), ...names.map((name) => name.split(".")[0] ?? "")]);
    const referred = [JSON.stringify(rest.profiles), ...texts].join("\n");
    // Asked only where something may go: it reads the command line of every process.
    const idle = unused(there, wanted, referred, new Set());
    const gone = idle.length === 0 ? [] : unused(idle, wanted, referred, await busyArtifacts(host));
    for (const hex of gone) {
      const known = record[hex];
      if (known !== undefined) await this.#record(hex, { ...known, list: null });
      await this.#remove(hex, names);
      await this.#forget(hex);
      check.forget(host.at(join(installed.artifacts, hex)));
      if (known !== undefined) note("ArtifactRemoved", `Artifact ${known.image} is gone: nothing uses it`);
    }
    // What a repair or a fetch of one that stays has left.
    const left = names.filter((name) => name.includes(".") && !this.#works.has(name.split(".")[0] ?? ""));
    for (const name of left) await this.#rm(name);
  }

  async #begin(want: Wanted, kind: Work["kind"] | "nothing", signal: AbortSignal): Promise<void> {
    if (kind === "nothing" || this.#works.has(want.hex)) return;
    if (performance.now() < (this.#failures.get(keyOf(want))?.due ?? 0)) return;
    const { host, ownership, manifest, registry, log, wake, note } = this.#options;
    try {
      await this.#stageRuntime(signal);
      await ownership.tree(installed.artifacts);
      if (kind === "fetch") {
        const { image, repair } = want;
        await this.#record(want.hex, { image, repair, list: null, policies: [] });
        await this.#remove(want.hex, await readdir(host.at(installed.artifacts)));
        note("ArtifactFetching", `Fetching artifact ${image}`);
      }
      await this.#rm(`${want.hex}.repair`);
    } catch (error) {
      signal.throwIfAborted();
      this.#failed(want, kind, error);
      return;
    }
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const context = { host, version: manifest.version, registry };
    const to = join(installed.artifacts, kind === "repair" ? `${want.hex}.repair` : want.hex);
    const started = performance.now();
    const run = async (): Promise<{ list?: string }> => {
      if (kind !== "verify") return await fetchOnHost(context, want, to, either);
      await verifyOnHost(context, want, either);
      return {};
    };
    const over = run()
      .catch((error: unknown) => ({ error }))
      .then((result) => {
        work.result = result;
        const err = "error" in result ? messageOf(result.error) : undefined;
        const ms = Math.round(performance.now() - started);
        log.info({ artifact: want.image, work: kind, err, ms }, "artifact");
        wake();
      });
    const work: Work = { want, kind, stop, over };
    this.#works.set(want.hex, work);
  }

  #failed(want: Wanted, kind: Work["kind"], error: unknown): void {
    const key = keyOf(want);
    const count = (this.#failures.get(key)?.count ?? 0) + 1;
    this.#failures.set(key, {
      message: messageOf(error),
      count,
      due: performance.now() + retryDelay(count),
    });
    this.#options.metrics.artifact.ended(kind, "failed");
  }

  async #ended({ want, kind, stop }: Work, result: NonNullable<Work["result"]>): Promise<void> {
    const { host, ownership, check, metrics, note } = this.#options;
    const { hex, image, policy } = want;
    if ("error" in result) {
      if (!stop.signal.aborted) this.#failed(want, kind, result.error);
      return;
    }
    this.#failures.delete(keyOf(want));
    metrics.artifact.ended(kind, "done");
    const known = ownership.record.artifacts?.[hex];
    if (known === undefined) return;
    const policies = policy === undefined ? known.policies : [...new Set([...known.policies, policy])];
    if (kind === "repair") {
      // By name: processes of running pods keep the files that they have.
      const directory = host.at(join(installed.artifacts, hex));
      await this.#rm(`${hex}.changed`);
      await rename(directory, `${directory}.changed`).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOENT") throw error;
      });
      await rename(`${directory}.repair`, directory);
      await this.#rm(`${hex}.changed`);
      check.forget(directory);
    }
    await this.#record(hex, { ...known, policies, list: result.list ?? known.list });
    if (kind === "fetch") note("ArtifactFetched", `Artifact ${image} is there, digest and policy verified`);
    if (kind === "repair")
      note("ArtifactRepaired", `Artifact ${image} was fetched anew and put in its place`);
  }

  /** Looks whether every artifact is what it was when it came, and says so. */
  async #check(signal: AbortSignal): Promise<void> {
    const { host, ownership, check, metrics, condition, note } = this.#options;
    const record = ownership.record.artifacts ?? {};
    this.#found = new Map();
    for (const [hex, known] of Object.entries(record)) {
      const directory = host.at(join(installed.artifacts, hex));
      const { list } = known;
      const changed = list === null ? [] : await changedFiles(directory, list, check, signal);
      this.#found.set(hex, { record: known, changed });
    }
    metrics.artifact.changed([...this.#found.values()].reduce((sum, { changed }) => sum + changed.length, 0));
    const wrong = [...this.#found.values()].filter(({ changed }) => changed.length > 0);
    const message = wrong.map(changeOf).join("; ");
    if (message !== "") condition(false, "ArtifactChanged", message);
    else if (this.#told !== "" || this.#found.size > 0)
      condition(true, "Verified", "Every file of every artifact is what it was when it came");
    if (message !== "" && message !== this.#told) note("ArtifactChanged", message, "Warning");
    this.#told = message;
  }

  /** The bundle's runtime, by which artifacts are fetched, on the host: before the engine may have put it there. */
  async #stageRuntime(signal: AbortSignal): Promise<void> {
    const { host, ownership, manifest, bundle, check } = this.#options;
    const directory = versionDirectory(manifest.version);
    const missing = await check.drifted(manifest, host.at(directory), signal);
    if (missing.length > 0) {
      await ownership.tree(directory);
      await stageBundle(manifest, bundle, host.at(directory), new Set(missing), signal);
    }
    // Its programs find their loader below this name.
    if (!(await exists(host.at(installed.current))))
      await ownership.symlink(installed.current, `versions/${manifest.version}`);
  }

  async #rememberRepair(wanted: readonly Wanted[]): Promise<void> {
    for (const [hex, users] of Map.groupBy(wanted, (want) => want.hex)) {
      const known = this.#options.ownership.record.artifacts?.[hex];
      const repair = users.some((want) => want.repair);
      if (known !== undefined && known.repair !== repair) await this.#record(hex, { ...known, repair });
    }
  }

  #record(hex: string, entry: ArtifactRecord): Promise<void> {
    return this.#options.ownership.update(({ artifacts }) => ({ artifacts: { ...artifacts, [hex]: entry } }));
  }

  #forget(hex: string): Promise<void> {
    return this.#options.ownership.update(({ artifacts: { [hex]: _, ...artifacts } = {} }) => ({
      artifacts,
    }));
  }

  /** Everything of one artifact: its directory and what stands beside it. */
  async #remove(hex: string, names: readonly string[]): Promise<void> {
    for (const name of names) if (name === hex || name.startsWith(`${hex}.`)) await this.#rm(name);
  }

  async #rm(name: string): Promise<void> {
    const { host } = this.#options;
    await rm(host.at(join(installed.artifacts, name)), { recursive: true, force: true });
  }
}

/** What was verified once, by its digest alone: its signature was of that. */
const byDigest = ({ hex, image }: Pick<Wanted, "hex" | "image">): Wanted => ({
  hex,
  image,
  keys: [],
  identity: "any",
  policy: undefined,
  repair: true,
});

const keyOf = ({ hex, policy }: Wanted): string => `${hex} ${policy ?? ""}`;

const changeOf = ({ record, changed }: Found): string => {
  const more = changed.length > 5 ? ` and ${changed.length - 5} more` : "";
  return `Files of artifact ${record.image} were changed: ${changed.slice(0, 5).join(", ")}${more}`;
};
