import { existsSync, lstatSync, readFileSync, statSync } from "node:fs";
import { chmod, chown, mkdir, readdir, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { replaceFile } from "@bulkhead/lib/std/replace-file.ts";
import * as z from "zod";
import { relabel } from "../container/relabel.ts";
import { type Linux, MountFlags } from "../linux/linux.ts";
import type { UnpackLimits } from "./apply.ts";
import { writeChanges } from "./changes.ts";
import { createImageMounts, whyNoErofs } from "./erofs/mounts.ts";
import { releaseIdMapped, withIdMapped } from "./id-mapped.ts";
import { createLayerLabels, type LabelLinux } from "./labels.ts";
import type { Sealed } from "./layer-tree.ts";
import { contextOf, joinOptions } from "./mount-options.ts";
import type { LayerSource, LayerUsage, Look, Snapshotter } from "./snapshotter.ts";
import { createTrash } from "./trash.ts";
import { createFileWorkers, type Unpacked } from "./workers.ts";

export type OverlayOptions = {
  limits?: Partial<UnpackLimits>;
  /** What new layers become; "auto" is EROFS images where the kernel mounts them. Those that are there stay as they are. */
  form?: "auto" | "directory" | "erofs";
  /** Told why "auto" chose directories. */
  onFallback?: (reason: string) => void;
  /** Where SELinux is on: the label of what containers read. */
  label?: string | undefined;
  /** Told why layers, or one of them, have not got it. */
  onUnlabelled?: (reason: string) => void;
};

type OverlayLinux = Pick<Linux, "mount" | "mountWith" | "umount" | "statfs" | "syncfs" | "mountIdMapped"> &
  LabelLinux;

/** A layer on disk. `synced` is set once its files surely survive a power cut. */
const Layer = z.object({
  id: z.string(),
  dir: z.string().regex(/^[0-9a-z]+$/),
  parent: z.string().optional(),
  /** Of a layer that is one image: found again before its first use in a boot. */
  digest: z.string().optional(),
  bytes: z.number().default(0),
  inodes: z.number().default(0),
  /** In which the content was written, or found to be right. */
  boot: z.string(),
  synced: z.boolean(),
});
type Layer = z.infer<typeof Layer>;

/** What a container root or a read-only mount stands on; it does not outlive a boot. */
const Stand = z.object({ boot: z.string(), layers: z.array(z.string()), writable: z.boolean() });
type Stand = z.infer<typeof Stand>;

/** No key begins so. */
const TRASH = ".trash";
const OVERLAYFS_MAGIC = 0x794c7630;
/** mount(2) takes a page of options, NUL included. */
const OPTIONS_MAX = 4095;
const NOTHING = ["none", "void"] as const;
const USAGE_MS = 10_000;
const SYNC_MS = 1_000;
const CHANGES_MS = 600_000;
const LIMITS: UnpackLimits = { entries: 4_000_000, bytes: 1024 ** 4 };

/**
 * Layers for overlayfs below `root`:
 *
 *     l/N            a layer: a directory, or an EROFS image; N is short, for mount(2) has but a page for the options
 *     m/N            where the image l/N is mounted
 *     layers/ID.json the record that makes l/N a layer; written last
 *     containers/KEY upper, work, stand.json
 *     staging, trash what is half made and half removed; emptied at start
 *
 * containers may be a mount point, of a disk for what containers write: its trash is there too, as .trash.
 *
 * Container roots are mounted `volatile`: no unmount waits for the disk. They do not outlive a boot, so nothing is
 * lost. Layers are not synced on the way of a pull either, but behind it: one that was not on disk for sure when
 * the machine went down is gone at the next start.
 */
export const overlay = async (
  root: string,
  linux: OverlayLinux,
  options: OverlayOptions = {},
): Promise<Snapshotter & AsyncDisposable> => {
  if (!isAbsolute(root) || /[:,\\\s]/.test(root))
    throw new RuntimeError("invalid-argument", `Cannot keep layers in "${root}": not a plain absolute path`);
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const at = (...parts: string[]) => join(root, ...parts);
  const layers = new Map<string, Layer>();
  const stands = new Map<string, Stand>();
  const extracting = new Map<string, { parent: string | undefined; done: Promise<unknown> }>();
  const verifying = new Map<string, Promise<void>>();
  const measured = new Map<string, { at: number; took: number; answer: Promise<Measured> }>();
  const limits = { ...LIMITS, ...options.limits };
  const workers = createFileWorkers();
  let serial = 0;
  let volatile = true;
  /** False when a record could not be read: what seems to be nobody's may be what a running container stands on. */
  let isSure = true;

  for (const dir of ["l", "m", "layers", "containers", "staging"])
    await mkdir(at(dir), { recursive: true, mode: 0o700 });
  const labels = createLayerLabels(options.label, [at("l"), at("staging")], linux, options.onUnlabelled);
  const images = createImageMounts(at("m"), linux, labels.label);
  const isOneDisk = statSync(at("l")).dev === statSync(at("containers")).dev;
  const trash = await createTrash(at("trash"), workers.remove);
  const trashOfContainers = isOneDisk ? trash : await createTrash(at("containers", TRASH), workers.remove);
  // Below what stands on nothing: overlayfs wants one directory at least, and two when all is read-only.
  for (const dir of NOTHING) await mkdir(at("l", dir), { recursive: true, mode: 0o755 });

  const open = async (): Promise<void> => {
    // As when a disk fails, or there are no descriptors.
    const unreadable = (): "unreadable" => {
      isSure = false;
      return "unreadable";
    };
    for (const name of await readdir(at("layers"))) {
      const layer = await readJson(at("layers", name), Layer).catch(unreadable);
      if (layer === "unreadable") continue;
      const isWhole =
        layer !== undefined &&
        name === fileOf(layer.id) &&
        (layer.synced || layer.boot === boot) &&
        (await isDirectory(at("l", layer.dir))) === (layer.digest === undefined) &&
        existsSync(at("l", layer.dir));
      if (isWhole) layers.set(layer.id, layer);
      else await rm(at("layers", name), { force: true });
    }
    const known = new Set<string>([...layers.values()].map(({ dir }) => dir).concat(NOTHING));
    const present = await readdir(at("l"));
    serial = 1 + Math.max(0, ...present.filter((dir) => !NOTHING.some((no) => no === dir)).map(serialOf));
    for (const name of present) if (isSure && !known.has(name)) trash.discardLater(at("l", name));
    for (const name of await readdir(at("staging"))) trash.discardLater(at("staging", name));
    for (const each of new Set([trash, trashOfContainers])) void each.empty();
    for (const key of await readdir(at("containers"))) {
      if (key === TRASH) continue;
      const stand = await readJson(at("containers", key, "stand.json"), Stand).catch(unreadable);
      if (stand === "unreadable") continue;
      if (stand?.boot === boot) stands.set(key, stand);
      else trashOfContainers.discardLater(at("containers", key));
    }
    const used = [...stands.values()].flatMap((stand) => stand.layers.map((id) => layers.get(id)?.dir ?? ""));
    await images.sweep(new Set(used));
    labels.ensureAll(layers.values().map(({ dir }) => at("l", dir)));
    void syncBehind();
  };

  let syncing: Promise<void> | undefined;
  let syncSoon: NodeJS.Timeout | undefined;
  /** Once nothing was extracted for a second: what a pull writes down itself would wait for the data of its layers. */
  const syncLater = (): void => {
    clearTimeout(syncSoon);
    syncSoon = setTimeout(() => void syncBehind(), SYNC_MS).unref();
  };
  /** Makes what was extracted sure, one sync at a time for all layers that came meanwhile. */
  const syncBehind = (): Promise<void> => {
    syncing ??= (async () => {
      for (;;) {
        const fresh = [...layers.values()].filter(({ synced }) => !synced);
        if (fresh.length === 0) return;
        await linux.syncfs(root);
        for (const layer of fresh)
          if (layers.get(layer.id) === layer) {
            const sure = { ...layer, synced: true };
            layers.set(layer.id, sure);
            await writeJson(at("layers", fileOf(layer.id)), sure);
          }
      }
    })()
      // A disk that fails: the layers stay unsure, which costs a new pull after a power cut.
      .catch(() => {})
      .finally(() => {
        syncing = undefined;
      });
    return syncing;
  };

  const layerOf = (id: string): Layer => {
    const layer = layers.get(id);
    if (layer === undefined) throw new RuntimeError("not-found", `Cannot find layer "${id}"`);
    return layer;
  };

  /** Where the files of a layer are, mounted if need be. Whoever asks holds the layer: a stand, or an extraction. */
  const dirOf = async (id: string): Promise<string> => {
    const layer = layerOf(id);
    await labels.ensure(at("l", layer.dir));
    if (layer.digest === undefined) return at("l", layer.dir);
    if (layer.boot !== boot) await verify(layer);
    return await images.mount(layer.dir, at("l", layer.dir));
  };

  /** A layer of an earlier boot: the disk may have changed it, or somebody who had the disk. */
  const verify = (layer: Layer): Promise<void> => {
    const known = verifying.get(layer.id);
    if (known !== undefined) return known;
    const found = (async () => {
      const right = (await workers.digest(at("l", layer.dir))) === layer.digest;
      if (layers.get(layer.id) !== layer) return;
      if (right) {
        const seen = { ...layer, boot };
        layers.set(layer.id, seen);
        await writeJson(at("layers", fileOf(layer.id)), seen);
        return;
      }
      // Gone: the next pull brings it again.
      layers.delete(layer.id);
      await rm(at("layers", fileOf(layer.id)), { force: true });
      trash.discardLater(at("l", layer.dir));
      throw new RuntimeError(
        "failed-precondition",
        `layer "${layer.id}" is damaged on the disk: pull its image again`,
      );
    })().finally(() => verifying.delete(layer.id));
    verifying.set(layer.id, found);
    return found;
  };

  /** Directories from `id` down to the lowest layer. */
  const chainOf = async (id: string | undefined): Promise<string[]> => {
    const dirs: string[] = [];
    for (let next = id; next !== undefined; next = layerOf(next).parent) dirs.push(await dirOf(next));
    return dirs;
  };

  const lowerOf = async (ids: string[]): Promise<string[]> =>
    ids.length === 0 ? [at("l", NOTHING[0])] : await Promise.all(ids.toReversed().map(dirOf));

  /** Ids that something stands on, or is being put on. */
  const isUsed = (id: string): boolean =>
    [...extracting.values()].some((each) => chainIds(each.parent).includes(id)) ||
    [...stands.values()].some((stand) => stand.layers.includes(id));

  const chainIds = (id: string | undefined): string[] => {
    const ids: string[] = [];
    for (let next = id; next !== undefined; next = layers.get(next)?.parent) ids.push(next);
    return ids;
  };

  const letGo = (ids: readonly string[]): void => {
    for (const id of ids) {
      const layer = layers.get(id);
      if (layer?.digest !== undefined && !isUsed(id)) images.release(layer.dir, () => isUsed(id));
    }
  };

  const extract = async (
    id: string,
    parent: string | undefined,
    source: LayerSource,
    signal: AbortSignal,
    after: Promise<unknown> | undefined,
  ): Promise<LayerUsage> => {
    const dir = (serial++).toString(36);
    const staging = at("staging", dir);
    if (form === "directory") await mkdir(staging, { mode: 0o755 });
    let unpacked: Unpacked | undefined;
    let sealed: Sealed;
    try {
      unpacked = await workers.unpack({ form, path: staging, limits }, source, signal);
      if (after !== undefined) await untilAborted(after, signal);
      if (parent !== undefined) layerOf(parent);
      const parents = unpacked.needsBelow ? await chainOf(parent) : [];
      const last = unpacked;
      unpacked = undefined;
      sealed = await last.seal(parents);
    } catch (error) {
      await unpacked?.abandon();
      trash.discardLater(staging);
      throw stopped(error, id, signal);
    }
    await rename(staging, at("l", dir));
    const layer: Layer = {
      id,
      dir,
      boot,
      synced: false,
      ...sealed,
      ...(parent === undefined ? {} : { parent }),
    };
    await writeJson(at("layers", fileOf(id)), layer);
    layers.set(id, layer);
    syncLater();
    return usageOf(layer);
  };

  const standOn = async (
    key: string,
    ids: string[],
    writable: boolean,
    { owners, label, changes }: Look & { changes?: string | undefined },
  ): Promise<void> => {
    checkKey(key);
    for (const id of ids) layerOf(id);
    const stand = { boot, layers: ids, writable };
    // In memory first: from now on the layers cannot be removed.
    stands.set(key, stand);
    await mkdir(at("containers", key), { recursive: true, mode: 0o700 });
    await writeJson(at("containers", key, "stand.json"), stand);
    if (!writable) return;
    await mkdir(at("containers", key, "work"), { recursive: true, mode: 0o755 });
    const upper = at("containers", key, "upper");
    if (await isDirectory(upper)) return;
    // The merged root has the looks of the upper one: those of the highest layer's.
    const [like] = await lowerOf(ids);
    const { uid, gid, mode, atime, mtime } = await stat(like!);
    await mkdir(`${upper}.new`, { recursive: true });
    await chown(`${upper}.new`, uid + (owners?.uid ?? 0), gid + (owners?.gid ?? 0));
    await chmod(`${upper}.new`, mode & 0o7777);
    await utimes(`${upper}.new`, atime, mtime);
    if (changes !== undefined) {
      // What the container writes itself gets its label from the overlay.
      if (label !== undefined) await relabel(`${upper}.new`, label, linux, AbortSignal.timeout(CHANGES_MS));
      await applyChanges(`${upper}.new`, changes, ids);
    }
    await rename(`${upper}.new`, upper);
  };

  /** As a layer of the container's own: by the same code as those of images, which takes nothing on trust. */
  const applyChanges = async (upper: string, file: string, ids: string[]): Promise<void> => {
    // Of files in a tar there is no more than of it; what it is compressed to is nobody's word.
    const bytes = Math.min(limits.bytes, (await stat(file)).size);
    const target = { form: "directory" as const, path: upper, limits: { ...limits, bytes } };
    const unpacked = await workers.unpack(target, { file }, AbortSignal.timeout(CHANGES_MS));
    await unpacked.seal(unpacked.needsBelow ? await lowerOf(ids) : []);
  };

  const mountStack = async (lower: string[], rest: [string, string][], target: string, flags: number) => {
    const joined = joinOptions([["lowerdir", lower.join(":")], ...rest]);
    if (joined.length <= OPTIONS_MAX) await linux.mount("overlay", target, "overlay", flags, joined);
    else {
      const each = lower.map((dir): [string, string] => ["lowerdir+", dir]);
      linux.mountWith("overlay", [...each, ...rest], target, flags);
    }
  };

  const mountUpper = async (
    key: string,
    lower: string[],
    target: string,
    label: string | undefined,
  ): Promise<void> => {
    const upper = at("containers", key, "upper");
    const work = at("containers", key, "work");
    const rest: [string, string][] = [["upperdir", upper], ["workdir", work], ...contextOf(label)];
    // The mark of an earlier volatile mount, which warns of a power cut that cannot have been: same boot.
    await rm(join(work, "work", "incompat"), { recursive: true, force: true });
    if (volatile) {
      try {
        await mountStack(lower, [...rest, ["volatile", ""]], target, 0);
        return;
      } catch (error) {
        // A kernel before 5.10 does not know it.
        if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error;
      }
    }
    await mountStack(lower, rest, target, 0);
    volatile = false;
  };

  /** True when an overlay is mounted on `target` itself, not merely somewhere above it. */
  const isMounted = (target: string): boolean =>
    linux.statfs(target).type === OVERLAYFS_MAGIC && statSync(target).dev !== statSync(dirname(target)).dev;

  const measure = async (key: string): Promise<Measured> => {
    const began = performance.now();
    const found = await workers.measure(at("containers", key, "upper"));
    const entry = measured.get(key);
    if (entry !== undefined) [entry.at, entry.took] = [performance.now(), performance.now() - began];
    return found;
  };

  await open();
  const why =
    (options.form ?? "directory") === "directory"
      ? "it was not asked for"
      : await whyNoErofs(root, linux, labels.label);
  if (why !== undefined && options.form === "erofs")
    throw new RuntimeError("failed-precondition", `Cannot keep layers as EROFS images: ${why}`);
  if (why !== undefined && options.form === "auto") options.onFallback?.(why);
  const form = why === undefined ? "erofs" : "directory";

  const snapshotter: Snapshotter & AsyncDisposable = {
    name: form === "erofs" ? "erofs" : "overlay",
    disks: { layers: at("l"), containers: at(isOneDisk ? "l" : "containers") },

    async extract(id, parent, source, signal, after) {
      checkId(id);
      for (let other = extracting.get(id); other !== undefined; other = extracting.get(id))
        await other.done.catch(() => {});
      const known = layers.get(id);
      if (known !== undefined) return usageOf(known);
      if (parent !== undefined && after === undefined) layerOf(parent);
      const done = extract(id, parent, source, signal, after);
      extracting.set(id, { parent, done });
      try {
        return await done;
      } finally {
        extracting.delete(id);
        letGo(chainIds(parent));
      }
    },

    has: (id) => layers.has(id),

    unclaimed(claimed) {
      if (!isSure) return [];
      const depth = (id: string): number => chainIds(id).length;
      return [...layers.keys()].filter((id) => !claimed.has(id)).sort((a, b) => depth(b) - depth(a));
    },

    async removeLayer(id) {
      const layer = layers.get(id);
      if (layer === undefined) return;
      const inUse =
        [...layers.values()].some(({ parent }) => parent === id) ||
        [...extracting.values()].some(({ parent }) => parent === id) ||
        [...stands.values()].some((stand) => stand.layers.includes(id));
      if (inUse)
        throw new RuntimeError("failed-precondition", `Cannot remove layer "${id}": something stands on it`);
      layers.delete(id);
      await rm(at("layers", fileOf(id)), { force: true }).catch((error) => {
        layers.set(id, layer);
        throw error;
      });
      if (layer.digest !== undefined) await images.unmount(layer.dir);
      await trash.discard(at("l", layer.dir));
    },

    async mountContainer(key, ids, target, { owners, label, changes } = {}) {
      if (isMounted(target)) return;
      await standOn(key, ids, true, { owners, label, changes });
      await withIdMapped(await lowerOf(ids), at("containers", key, "shifted"), owners, linux, (lower) =>
        mountUpper(key, lower, target, label),
      ).catch((error) => {
        throw mountFailed(target, error);
      });
    },

    async saveChanges(key, file, signal) {
      checkKey(key);
      await writeChanges(at("containers", key, "upper"), file, signal);
    },

    async mountReadonly(key, ids, target, { owners, label } = {}) {
      if (isMounted(target)) return;
      await standOn(key, ids, false, { owners });
      const lowest = await lowerOf(ids);
      const dirs = ids.length < 2 ? [...lowest, at("l", NOTHING[1])] : lowest;
      await withIdMapped(dirs, at("containers", key, "shifted"), owners, linux, (lower) =>
        mountStack(lower, contextOf(label), target, MountFlags.RDONLY),
      ).catch((error) => {
        throw mountFailed(target, error);
      });
    },

    async unmount(target) {
      const failed = await linux.umount(target, MountFlags.NOFOLLOW).then(() => undefined, codeOf);
      if (failed === undefined || failed === "EINVAL" || failed === "ENOENT") return;
      if (failed !== "EBUSY") throw new RuntimeError("internal", `Cannot unmount "${target}": ${failed}`);
      await linux.umount(target, MountFlags.NOFOLLOW | MountFlags.DETACH);
    },

    async removeContainer(key) {
      checkKey(key);
      const dir = at("containers", key);
      await releaseIdMapped(join(dir, "shifted"), linux);
      await trashOfContainers.hide(dir);
      const stood = stands.get(key)?.layers ?? [];
      stands.delete(key);
      letGo(stood);
      measured.delete(key);
    },

    async usage(key) {
      const stand = stands.get(key);
      if (stand === undefined) throw new RuntimeError("not-found", `Cannot find container root "${key}"`);
      if (!stand.writable) return { bytes: 0n, inodes: 0n };
      const known = measured.get(key);
      if (known === undefined) {
        const answer = measure(key);
        measured.set(key, { at: Number.POSITIVE_INFINITY, took: 0, answer });
        return await answer.catch((error) => {
          measured.delete(key);
          throw error;
        });
      }
      // A tree that takes long is measured seldom: at most a twentieth of the time. Nobody waits for a second look.
      if (performance.now() - known.at > Math.max(USAGE_MS, 20 * known.took)) {
        known.at = Number.POSITIVE_INFINITY;
        measure(key).then(
          (found) => {
            known.answer = Promise.resolve(found);
          },
          () => {
            known.at = performance.now();
          },
        );
      }
      return await known.answer;
    },

    async containersUsage() {
      const keys = [...stands].filter(([, { writable }]) => writable).map(([key]) => key);
      const total = { bytes: 0n, inodes: 0n };
      for (const key of keys) {
        // One that goes away meanwhile takes nothing.
        const { bytes, inodes } = await snapshotter.usage(key).catch(() => ({ bytes: 0n, inodes: 0n }));
        total.bytes += bytes;
        total.inodes += inodes;
      }
      return total;
    },

    async [Symbol.asyncDispose]() {
      await labels.close();
      for (const each of [trash, trashOfContainers]) each[Symbol.dispose]();
      clearTimeout(syncSoon);
      await syncBehind();
      await images.close((dir) =>
        [...layers.values()].some((layer) => layer.dir === dir && isUsed(layer.id)),
      );
      await workers[Symbol.asyncDispose]();
    },
  };
  return snapshotter;
};

const usageOf = ({ bytes, inodes }: Layer): LayerUsage => ({ bytes, inodes });

type Measured = { bytes: bigint; inodes: bigint };

const serialOf = (dir: string): number => {
  const value = Number.parseInt(dir, 36);
  return Number.isSafeInteger(value) ? value : 0;
};

const fileOf = (id: string) => `${encodeURIComponent(id)}.json`;

const checkId = (id: string): void => {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.:+-]{0,199}$/.test(id))
    throw new RuntimeError("invalid-argument", `Cannot use "${id}" as the id of a layer`);
};

const checkKey = (key: string): void => {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/.test(key))
    throw new RuntimeError("invalid-argument", `Cannot use "${key}" as the key of a container root`);
};

const codeOf = (error: NodeJS.ErrnoException): string => error.code ?? messageOf(error);

const mountFailed = (target: string, error: unknown) =>
  new RuntimeError("internal", `Cannot mount layers on "${target}": ${messageOf(error)}`, { cause: error });

const stopped = (error: unknown, id: string, signal: AbortSignal): unknown =>
  signal.aborted && !(error instanceof RuntimeError)
    ? new RuntimeError("cancelled", `Cannot extract layer "${id}": it was cancelled`, { cause: error })
    : error;

/** Waits for what is on its way, but not longer than the signal. */
const untilAborted = async (wait: Promise<unknown>, signal: AbortSignal): Promise<void> => {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  aborted.catch(() => {});
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    signal.throwIfAborted();
    await Promise.race([wait, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
};

const isDirectory = async (path: string): Promise<boolean> => {
  try {
    return lstatSync(path).isDirectory();
  } catch {
    return false;
  }
};

/** undefined when the file is absent or not whole; rejects when it cannot be read. */
const readJson = async <T>(path: string, schema: z.ZodType<T>): Promise<T | undefined> => {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return "";
    throw error;
  });
  try {
    return schema.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
};

const writeJson = (path: string, value: unknown): Promise<void> => replaceFile(path, JSON.stringify(value));
