import { mkdir, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { firstFailure, hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { span } from "@bulkhead/lib/tracing/span.ts";
import type { Logger } from "pino";
import type { LayerUsage, Snapshotter } from "../snapshot/snapshotter.ts";
import { syncFolder, writeDurably } from "./atomic-file.ts";
import { BlobStage } from "./blob-stage.ts";
import { RegistryUnavailable } from "./endpoint-error.ts";
import { globOf } from "./glob.ts";
import type { FsInfo, Image, Images, PullRequest } from "./images.ts";
import { hostPlatform, type Platform, sha256 } from "./manifest.ts";
import { unpackLayers } from "./pull.ts";
import { Pulls } from "./pulls.ts";
import { type ImageRecord, imageRecord, planSweep, refsRecord, type Sweep } from "./record.ts";
import { formatReference, nameOf, parseReference, type Reference } from "./reference.ts";
import { Registry } from "./registry.ts";
import { type Layer, type Resolved, resolveImage } from "./resolve.ts";
import { Semaphore } from "./semaphore.ts";
import { readKeys, ruleFor, SignatureError, type SignatureRule, verifySignature } from "./signature.ts";
import { SingleFlight } from "./single-flight.ts";

export type ImagesOptions = {
  /** Folder of the store; blobs/, images/, staging/ and refs.json are in it, and records that nobody can read in aside/. */
  root: string;
  snapshotter: Snapshotter;
  /** Host of a registry → URLs asked before it: { "registry.k8s.io": ["http://10.0.0.1:5000"] }. */
  mirrors: Readonly<Record<string, readonly string[]>>;
  /** Folder of HOST:PORT/{hosts.toml,*.crt,*.cert,*.key}, as in containerd's and Docker's certs.d. */
  certsDir?: string | undefined;
  /** A docker config.json, for pulls that bring no credentials. */
  credentialsFile?: string | undefined;
  /** Whose signatures images need. */
  signatures?: readonly SignatureRule[];
  /** A pull to which nothing comes for so long fails. */
  stallMs?: number;
  /** How long a pull goes on for which nobody waits: longer than the kubelet's longest pause between tries. */
  lingerMs?: number;
  /** How long what a failed pull left stays for the next try. */
  keepMs?: number;
  metrics?: PullMetrics;
  log: Pick<Logger, "debug" | "info" | "warn">;
  /** Globs of names (REGISTRY/REPOSITORY:TAG or @DIGEST) of images that the kubelet is never to collect. */
  pinned?: readonly string[];
  /** IDs of the images that containers stand on, removed or not. Asked whenever something is collected. */
  inUse?: () => Iterable<string>;
  /** Downloads at a time, over all pulls. */
  maxDownloads?: number;
  platform?: Platform;
};

/** Promise.all, which leaves nothing under way when one of them fails. */
const allOf = async <const T extends readonly unknown[]>(all: T) => {
  await Promise.allSettled(all);
  return await Promise.all(all);
};

/** The store of images, with what the daemon needs besides {@link Images}. */
export interface ImageStore extends Images, AsyncDisposable {
  /** Removes what no image, pull or container needs. To be called when the last container of an image is gone. */
  collect(): Promise<void>;
}

/** What is counted of pulls. */
export type PullMetrics = {
  pulling(count: () => number): void;
  received(bytes: number): void;
  ended(result: "pulled" | "failed", seconds: number): void;
};

/** What ends a read for want of descriptors or memory says nothing of the file. */
const shortages: ReadonlySet<string> = new Set(["EMFILE", "ENFILE", "ENOMEM"]);
const minute = 60_000;
/** How often the log says how far a pull is. */
const progressMs = 10_000;

const idPrefix = /^(?:sha256:)?([0-9a-f]{12,64})$/;

/**
 * Opens the store at `root`. Images are known again from their records; one whose layers are not all there any more is
 * not listed and will be pulled anew.
 */
export const openImages = async (options: ImagesOptions): Promise<ImageStore> => {
  const store = new Store(options);
  await store.load();
  return store;
};

class Store implements ImageStore {
  readonly #options: ImagesOptions;
  readonly #registry: Registry;
  readonly #platform: Platform;
  readonly #pinned: RegExp[];
  readonly #records = new Map<string, ImageRecord>();
  /** name:tag and name@digest → image ID. */
  #refs = new Map<string, string>();
  /** Chain IDs that pulls under way need, counted; and the images they are of. */
  readonly #heldLayers = new Map<string, number>();
  readonly #heldImages = new Map<string, number>();
  /** Images that could go, and when they may: half pulled ones wait for the next try, stuck ones for the next sweep. */
  readonly #kept = new Map<string, number>();
  readonly #keepMs: number;
  /** Names of records that could not be read at the start: looked at once more before their layers are nobody's. */
  readonly #unread = new Set<string>();
  /** When layers that no record names may go; undefined when there are none. */
  #unclaimedUntil: number | undefined;
  /** Everything that changes records, refs or removes layers goes through here, one at a time. */
  readonly #changes = new Semaphore(1);
  readonly #stage: BlobStage;
  readonly #pulls: Pulls<Image>;
  #collecting: NodeJS.Timeout | undefined;
  readonly #flights = new SingleFlight<LayerUsage | undefined>();

  constructor(options: ImagesOptions) {
    this.#options = options;
    const stallMs = options.stallMs ?? 5 * minute;
    // Long enough silent, a connection is given up and the next attempt goes on where it ended.
    this.#registry = new Registry({ ...options, silenceMs: Math.min(30_000, stallMs / 4) });
    this.#platform = options.platform ?? hostPlatform();
    this.#pinned = (options.pinned ?? []).map(globOf);
    this.#keepMs = options.keepMs ?? 10 * minute;
    this.#stage = new BlobStage({
      folder: this.#path("staging"),
      maxDownloads: options.maxDownloads ?? 6,
      stallMs,
      keepMs: this.#keepMs,
      received: options.metrics?.received,
    });
    this.#pulls = new Pulls(options.lingerMs ?? 10 * minute);
    options.metrics?.pulling(() => this.#pulls.running);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#collecting);
    await this.#pulls[Symbol.asyncDispose]();
    // After a collection that is under way, which may have set it anew.
    await this.#changes.run(async () => clearTimeout(this.#collecting));
    await this.#stage[Symbol.asyncDispose]();
    await this.#registry[Symbol.asyncDispose]();
  }

  async load(): Promise<void> {
    const { log, snapshotter, signatures = [] } = this.#options;
    // Told now, not by the first pull that needs the key.
    const { problems } = await readKeys([...new Set(signatures.flatMap(({ keys }) => keys))]);
    for (const reason of problems) log.warn({ reason }, "images that need this key are refused");
    await rm(this.#path("staging"), { recursive: true, force: true });
    for (const folder of ["", "staging", "images", "blobs", "blobs/sha256", "blobs/sha512"]) {
      await mkdir(this.#path(folder), { recursive: true, mode: 0o700 });
    }
    for (const name of await readdir(this.#path("images")))
      if ((await this.#readRecord(name)) !== undefined) this.#unread.add(name);
    await this.#loadRefs();
    // Of a write of the names that a kill ended.
    for (const name of await readdir(this.#path("")))
      if (name.endsWith(".tmp")) await rm(this.#path(name), { force: true });
    const wanted = new Set([...this.#records.values()].flatMap((record) => record.blobs));
    for (const algorithm of ["sha256", "sha512"]) {
      for (const hex of await readdir(this.#path("blobs", algorithm))) {
        if (this.#unread.size === 0 && !wanted.has(`${algorithm}:${hex}`))
          await rm(this.#path("blobs", algorithm, hex), { force: true });
      }
    }
    // An earlier life left these: the pull may come again, and containers are not known yet.
    for (const { id, state } of this.#records.values()) if (state !== "present") this.#keep(id);
    if (this.#unread.size > 0 || snapshotter.unclaimed(this.#claimed()).length > 0) this.#claimLater();
    log.info({ images: this.list().length }, "images loaded");
  }

  /** Takes a record up, or sets it aside when it is none. Says why it cannot be read. */
  async #readRecord(name: string): Promise<NodeJS.ErrnoException | undefined> {
    const { log, snapshotter } = this.#options;
    const file = this.#path("images", name);
    if (!name.endsWith(".json")) {
      log.warn({ file }, "removed: left over from a write");
      await rm(file, { force: true });
      return undefined;
    }
    let text: string;
    try {
      text = await readFile(file, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      log.warn({ file, err: messageOf(error) }, "image record cannot be read");
      return error as NodeJS.ErrnoException;
    }
    try {
      const record = imageRecord.parse(JSON.parse(text));
      // Pulled anew meanwhile.
      if (this.#records.has(record.id)) return undefined;
      const whole = record.layers.every(({ chainId }) => snapshotter.has(chainId));
      if (!whole && record.state === "present") log.warn({ image: record.id }, "image has lost a layer");
      this.#records.set(record.id, whole ? record : { ...record, state: "partial" });
    } catch (error) {
      await this.#setAside(name, messageOf(error));
    }
    return undefined;
  }

  async #setAside(name: string, reason: string): Promise<void> {
    const aside = this.#path("aside", name);
    await mkdir(this.#path("aside"), { recursive: true, mode: 0o700 });
    await rm(aside, { recursive: true, force: true });
    await rename(this.#path("images", name), aside);
    this.#options.log.warn(
      { file: aside, reason },
      "image record set aside: its image is to be pulled again",
    );
  }

  /** Layers that a record names, or a pull under way. */
  #claimed(): Set<string> {
    const named = [...this.#records.values()].flatMap(({ layers }) => layers.map(({ chainId }) => chainId));
    return new Set([...named, ...this.#heldLayers.keys()]);
  }

  #claimLater(): void {
    this.#unclaimedUntil = performance.now() + this.#keepMs;
    this.#collectLater();
  }

  /**
   * Removes layers that no record names: of records that were set aside. What could not be read at the start is looked
   * at once more first, for a disk may have had a bad moment. What containers stand on waits until they are gone.
   */
  async #removeUnclaimed(): Promise<void> {
    if (this.#unclaimedUntil === undefined || this.#unclaimedUntil > performance.now()) return;
    this.#unclaimedUntil = undefined;
    const { snapshotter, log } = this.#options;
    try {
      for (const name of this.#unread) {
        const problem = await this.#readRecord(name);
        if (shortages.has(problem?.code ?? "")) throw problem;
        if (problem !== undefined) await this.#setAside(name, problem.message);
        this.#unread.delete(name);
        // Names of what is there after all.
        if (problem === undefined) await this.#loadRefs();
      }
    } catch (error) {
      log.warn({ err: messageOf(error) }, "layers of no image stay for now");
      return this.#claimLater();
    }
    for (const layer of snapshotter.unclaimed(this.#claimed()))
      try {
        await snapshotter.removeLayer(layer);
        log.info({ layer }, "layer of no image removed");
      } catch (error) {
        log.debug({ layer, err: messageOf(error) }, "layer of no image stays for now");
        this.#claimLater();
      }
  }

  async #loadRefs(): Promise<void> {
    let text: string;
    try {
      text = await readFile(this.#path("refs.json"), "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    try {
      const { refs } = refsRecord.parse(JSON.parse(text));
      this.#refs = new Map(Object.entries(refs).filter(([, id]) => this.#isPresent(id)));
    } catch (error) {
      this.#options.log.warn({ err: messageOf(error) }, "image names dropped");
    }
  }

  list(): Image[] {
    const names = this.#namesById();
    return [...this.#records.values()]
      .filter(({ state }) => state === "present")
      .map((record) => this.#image(record, names.get(record.id) ?? []));
  }

  get(ref: string): Image | undefined {
    const record = this.#find(ref);
    return record && this.#image(record, this.#namesById().get(record.id) ?? []);
  }

  async pull(request: PullRequest, signal: AbortSignal): Promise<Image> {
    try {
      const reference = parseReference(request.ref);
      // Only who shows the same credentials may join.
      const key = sha256(JSON.stringify([formatReference(reference), request.auth ?? {}]));
      return await this.#pulls.run(key, (shared) => this.#attempt(reference, request.auth, shared), signal);
    } catch (error) {
      throw pullError(request.ref, error, signal);
    }
  }

  /** One pull, for all who wait for it. */
  async #attempt(reference: Reference, auth: PullRequest["auth"], signal: AbortSignal): Promise<Image> {
    const { metrics } = this.#options;
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1000;
    try {
      const image = await this.#pull(reference, auth, signal);
      metrics?.ended("pulled", seconds());
      return image;
    } catch (error) {
      metrics?.ended("failed", seconds());
      if (isFull(error)) await this.#makeRoom();
      this.#options.log.info({ ref: formatReference(reference), err: messageOf(error) }, "image pull failed");
      throw error;
    }
  }

  /** On a full disk nothing is kept for another try. */
  async #makeRoom(): Promise<void> {
    await this.#stage.forget();
    this.#kept.clear();
    await this.#tryCollect();
  }

  async #tryCollect(): Promise<void> {
    await this.collect().catch((error) => {
      this.#options.log.warn({ err: messageOf(error) }, "unused layers were not removed");
    });
  }

  /** Leaves an image that could go for a while, and collects it then. */
  #keep(id: string): void {
    this.#kept.set(id, performance.now() + this.#keepMs);
    this.#collectLater();
  }

  #collectLater(): void {
    clearTimeout(this.#collecting);
    const due = [
      ...this.#kept.values(),
      ...(this.#unclaimedUntil === undefined ? [] : [this.#unclaimedUntil]),
    ];
    if (due.length === 0) return;
    // A timer may come a little early.
    const wait = Math.min(...due) - performance.now() + 10;
    this.#collecting = setTimeout(() => void this.#tryCollect(), wait);
    this.#collecting.unref();
  }

  async #pull(reference: Reference, auth: PullRequest["auth"], signal: AbortSignal): Promise<Image> {
    const { snapshotter, log, signatures = [] } = this.#options;
    const started = performance.now();
    const repository = this.#registry.repository(reference, auth);
    const tagOrDigest = reference.digest ?? reference.tag ?? "latest";
    const resolved = await span("resolve image", {}, () =>
      resolveImage(repository, tagOrDigest, this.#platform, signal),
    );
    const rule = ruleFor(signatures, reference);
    if (rule !== undefined)
      await span("verify signature", {}, () =>
        verifySignature(rule, reference, [resolved.target, resolved.manifest], repository, signal),
      );
    const chain = resolved.layers.map(({ chainId }) => chainId);
    await using _held = await this.#hold(resolved.id, chain);
    const missing = resolved.layers.filter(({ chainId }) => !snapshotter.has(chainId));
    await this.#stage.assertRoom(missing.reduce((sum, { size }) => sum + size, 0));

    using _told = this.#tellProgress(reference, missing);
    // The disk takes its time, in which layers come in.
    const recorded = this.#record(resolved);
    const [, usages] = await allOf([
      recorded,
      unpackLayers(
        resolved.layers,
        { repository, snapshotter, stage: this.#stage, flights: this.#flights, recorded },
        signal,
      ),
    ]);
    const image = await this.#commit(resolved, usages, reference);
    const ms = Math.round(performance.now() - started);
    log.info({ image: image.id, ref: formatReference(reference), layers: usages.size, ms }, "image pulled");
    return image;
  }

  /** Says now and then how far a long pull is. */
  #tellProgress(reference: Reference, missing: readonly Layer[]): Disposable {
    const { log, snapshotter } = this.#options;
    const bytes = missing.reduce((sum, { size }) => sum + size, 0);
    const timer = setInterval(() => {
      const there = missing.filter(({ chainId }) => snapshotter.has(chainId));
      const received = missing.reduce(
        (sum, layer) => sum + (there.includes(layer) ? layer.size : this.#stage.received(layer)),
        0,
      );
      const layers = `${there.length}/${missing.length}`;
      log.info({ ref: formatReference(reference), received, bytes, layers }, "image pull goes on");
    }, progressMs);
    timer.unref();
    return { [Symbol.dispose]: () => clearInterval(timer) };
  }

  /** Keeps an image's layers from being collected until disposed. Waits for a collection that is under way. */
  #hold(id: string, chain: readonly string[]): Promise<Disposable> {
    const count = (map: Map<string, number>, key: string, by: number): void => {
      const next = (map.get(key) ?? 0) + by;
      if (next > 0) map.set(key, next);
      else map.delete(key);
    };
    return this.#changes.run(async () => {
      count(this.#heldImages, id, 1);
      for (const layer of chain) count(this.#heldLayers, layer, 1);
      return {
        [Symbol.dispose]: () => {
          count(this.#heldImages, id, -1);
          for (const layer of chain) count(this.#heldLayers, layer, -1);
          const state = this.#records.get(id)?.state;
          if (state !== undefined && state !== "present") this.#keep(id);
        },
      };
    });
  }

  /** Writes the documents and a record that names the layers, before the first layer is there. */
  #record(resolved: Resolved): Promise<void> {
    return this.#changes.run(async () => {
      const known = this.#records.get(resolved.id);
      const kept = new Set(known?.blobs);
      const fresh = [...resolved.blobs].filter(([digest]) => !kept.has(digest));
      await Promise.all(
        fresh.map(([digest, bytes]) => writeDurably(this.#path("blobs", ...digest.split(":")), bytes)),
      );
      if (known !== undefined && fresh.length === 0) return;
      await this.#put({
        version: 1,
        state: known?.state ?? "partial",
        kind: resolved.kind,
        id: resolved.id,
        size: resolved.size,
        layers: resolved.layers.map(({ chainId, digest }, n) => ({
          chainId,
          digest,
          bytes: known?.layers[n]?.bytes ?? 0,
          inodes: known?.layers[n]?.inodes ?? 0,
        })),
        blobs: [...new Set([...kept, ...resolved.blobs.keys()])],
        user: resolved.config.user,
        config: resolved.config.config,
      });
    });
  }

  /** Makes the image visible under its name. */
  #commit(resolved: Resolved, usages: ReadonlyMap<string, LayerUsage>, reference: Reference): Promise<Image> {
    return this.#changes.run(async () => {
      const record = this.#records.get(resolved.id);
      if (record === undefined)
        throw new RuntimeError("internal", `image ${resolved.id} has lost its record`);
      const whole = resolved.layers.every(({ chainId }) => this.#options.snapshotter.has(chainId));
      if (!whole) throw new RuntimeError("internal", `image ${resolved.id} has lost a layer`);
      const known = this.#layerUsages();
      const layers = record.layers.map((layer) => ({
        ...layer,
        ...(usages.get(layer.chainId) ?? known.get(layer.chainId)),
      }));
      const isNew = record.state !== "present" || usages.size > 0;
      const present: ImageRecord = isNew ? { ...record, state: "present", layers } : record;
      const refs = new Map(this.#refs);
      refs.set(`${nameOf(reference)}@${resolved.target}`, resolved.id);
      if (reference.digest === undefined) refs.set(formatReference(reference), resolved.id);
      const isNamed = [...refs].every(([ref, id]) => this.#refs.get(ref) === id);
      // At once, in one wait for the disk: names of what is not present are not read at a start.
      await allOf([isNew ? this.#write(present) : undefined, isNamed ? undefined : this.#writeRefs(refs)]);
      this.#records.set(present.id, present);
      this.#refs = refs;
      const image = this.get(resolved.id);
      if (image === undefined) throw new RuntimeError("internal", `image ${resolved.id} is not there`);
      return image;
    });
  }

  async remove(ref: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await this.#changes.run(async () => {
      const record = this.#find(ref);
      if (record === undefined) return;
      const refs = new Map([...this.#refs].filter(([, id]) => id !== record.id));
      const removed = { ...record, state: "removed" as const };
      const write = async (): Promise<void> => {
        await this.#putRefs(refs);
        if (this.#records.has(record.id)) await this.#put(removed);
      };
      let isWritten = true;
      await write().catch((error: unknown) => {
        if (!isFull(error)) throw error;
        // What makes room must not wait for room. The record's file goes with its layers, and a name of an image
        // without a record is none after a restart either.
        isWritten = false;
        this.#refs = refs;
        this.#records.set(record.id, removed);
      });
      this.#kept.delete(record.id);
      await this.#sweep();
      // Of an image that containers stand on nothing went yet: after a restart it may be listed once more.
      if (!isWritten) await write().catch(() => {});
      this.#options.log.info({ image: record.id, ref }, "image removed");
    }, signal);
  }

  collect(): Promise<void> {
    return this.#changes.run(() => this.#sweep());
  }

  async #sweep(): Promise<void> {
    await this.#removeUnclaimed();
    for (const [id, until] of this.#kept) if (until <= performance.now()) this.#kept.delete(id);
    const used = this.#options.inUse?.() ?? [];
    const images = new Set([...this.#heldImages.keys(), ...used, ...this.#kept.keys()]);
    const sweep = planSweep(this.#records.values(), { images, layers: new Set(this.#heldLayers.keys()) });
    try {
      await this.#discard(sweep);
    } finally {
      for (const { id } of sweep.records) if (this.#records.has(id)) this.#keep(id);
      this.#collectLater();
    }
  }

  async #discard(sweep: Sweep): Promise<void> {
    if (sweep.records.length === 0) return;
    const stuck = new Set<string>();
    for (const layer of sweep.layers) {
      try {
        await this.#options.snapshotter.removeLayer(layer);
      } catch (error) {
        stuck.add(layer);
        this.#options.log.warn({ layer, err: messageOf(error) }, "layer cannot be removed yet");
      }
    }
    // A record goes after its layers, so that a layer never loses the last thing that names it.
    for (const record of sweep.records) {
      if (record.layers.some(({ chainId }) => stuck.has(chainId))) continue;
      await rm(this.#recordPath(record.id), { force: true });
      this.#records.delete(record.id);
    }
    await syncFolder(this.#path("images"));
    for (const blob of sweep.blobs) await rm(this.#path("blobs", ...blob.split(":")), { force: true });
  }

  async fsInfo(): Promise<FsInfo> {
    let bytes = 0;
    let inodes = 0;
    for (const usage of this.#layerUsages().values()) {
      bytes += usage.bytes;
      inodes += usage.inodes;
    }
    return { usedBytes: BigInt(bytes), inodesUsed: BigInt(inodes) };
  }

  #layerUsages(): Map<string, LayerUsage> {
    const usages = new Map<string, LayerUsage>();
    for (const { layers } of this.#records.values()) {
      for (const { chainId, bytes, inodes } of layers) {
        if (!usages.has(chainId) || bytes > 0) usages.set(chainId, { bytes, inodes });
      }
    }
    return usages;
  }

  #find(ref: string): ImageRecord | undefined {
    const named = this.#byName(ref);
    if (named !== undefined) return this.#records.get(named);
    const prefix = idPrefix.exec(ref)?.[1];
    if (prefix === undefined) return undefined;
    const found = [...this.#records.values()].filter(
      ({ id, state }) => state === "present" && id.startsWith(`sha256:${prefix}`),
    );
    return found.length === 1 ? found[0] : undefined;
  }

  #byName(ref: string): string | undefined {
    try {
      return this.#refs.get(formatReference(parseReference(ref)));
    } catch {
      return undefined;
    }
  }

  #namesById(): Map<string, string[]> {
    const names = new Map<string, string[]>();
    for (const [ref, id] of this.#refs) {
      const of = names.get(id);
      if (of === undefined) names.set(id, [ref]);
      else of.push(ref);
    }
    return names;
  }

  #image(record: ImageRecord, names: string[]): Image {
    return {
      id: record.id,
      repoTags: names.filter((name) => !name.includes("@")).sort(),
      repoDigests: names.filter((name) => name.includes("@")).sort(),
      size: record.size,
      user: {
        username: record.user.username,
        ...(record.user.uid === undefined ? {} : { uid: record.user.uid }),
      },
      pinned: names.some((name) => this.#pinned.some((glob) => glob.test(name))),
      ...(record.kind === "artifact" && { isArtifact: true }),
      ...(record.kind === "checkpoint" && { isCheckpoint: true }),
      layers: record.layers.map(({ chainId }) => chainId),
      config: record.config,
    };
  }

  #isPresent(id: string): boolean {
    return this.#records.get(id)?.state === "present";
  }

  async #put(record: ImageRecord): Promise<void> {
    await this.#write(record);
    this.#records.set(record.id, record);
  }

  #write(record: ImageRecord): Promise<void> {
    return writeDurably(this.#recordPath(record.id), JSON.stringify(record));
  }

  async #putRefs(refs: Map<string, string>): Promise<void> {
    await this.#writeRefs(refs);
    this.#refs = refs;
  }

  #writeRefs(refs: Map<string, string>): Promise<void> {
    const text = JSON.stringify({ version: 1, refs: Object.fromEntries(refs) });
    return writeDurably(this.#path("refs.json"), text);
  }

  #recordPath(id: string): string {
    return this.#path("images", `${id.replace(":", "-")}.json`);
  }

  #path(...parts: string[]): string {
    return join(this.#options.root, ...parts);
  }
}

/** True when an error says that a disk is full. */
const isFull = (error: unknown): boolean => {
  const first = firstFailure(error);
  const { code } = (first ?? {}) as NodeJS.ErrnoException;
  return code === "ENOSPC" || code === "EDQUOT" || hasCode(first, "resource-exhausted");
};

/** Any failure of a pull as an error that names the image. The kubelet knows two kinds by their first word. */
const pullError = (ref: string, error: unknown, signal: AbortSignal): RuntimeError => {
  const what = `Cannot pull image "${ref}"`;
  if (signal.aborted) {
    const late = signal.reason instanceof Error && signal.reason.name === "TimeoutError";
    return new RuntimeError(
      late ? "deadline-exceeded" : "cancelled",
      `${what}: ${late ? "it took too long" : "the pull was cancelled"}; it goes on for a while, and another try joins it`,
      { cause: error },
    );
  }
  const first = firstFailure(error);
  const why = messageOf(error);
  if (first instanceof SignatureError)
    return new RuntimeError("unknown", `SignatureValidationFailed: ${what}: ${why}`, { cause: error });
  if (first instanceof RegistryUnavailable)
    return new RuntimeError("unknown", `RegistryUnavailable: ${what}: ${why}`, { cause: error });
  if (isFull(error)) {
    const full = /no space left|ENOSPC|EDQUOT/i.test(why) ? "" : "no space left on device: ";
    return new RuntimeError("resource-exhausted", `${what}: ${full}${why}`, { cause: error });
  }
  return new RuntimeError(first instanceof RuntimeError ? first.code : "unknown", `${what}: ${why}`, {
    cause: error,
  });
};
