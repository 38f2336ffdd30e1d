import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Snapshotter } from "../snapshot/snapshotter.ts";
import {
  assertImage,
  assertRuns,
  chainIds,
  choosePlatform,
  type Descriptor,
  type ParsedConfig,
  type Platform,
  parseConfig,
  parseManifest,
} from "./manifest.ts";
import type { Repository } from "./registry.ts";
import type { Semaphore } from "./semaphore.ts";
import type { SingleFlight } from "./single-flight.ts";

/** A layer of an image and the place it takes: on the layers below it, known by its chain ID. */
export type Layer = Descriptor & { diffId: string; chainId: string };

/** All that is known of an image before its layers are fetched. */
export type Resolved = {
  /** Digest of the configuration: the image ID. */
  id: string;
  /** Digest that the reference named: of the index when there is one, else of the manifest. */
  target: string;
  config: ParsedConfig;
  layers: Layer[];
  /** Documents to keep, by digest. */
  blobs: Map<string, Uint8Array>;
  /** Bytes of compressed layers and configuration. */
  size: number;
};

const maxIndexDepth = 3;

/** Follows a tag or digest through indexes to the manifest and the configuration for this platform. */
export const resolveImage = async (
  repository: Repository,
  tagOrDigest: string,
  platform: Platform,
  signal: AbortSignal,
): Promise<Resolved> => {
  const blobs = new Map<string, Uint8Array>();
  let target: string | undefined;
  let next = tagOrDigest;
  for (let depth = 0; depth <= maxIndexDepth; depth++) {
    const { digest, contentType, bytes } = await repository.manifest(next, signal);
    target ??= digest;
    blobs.set(digest, bytes);
    const parsed = parseManifest(bytes, contentType);
    if (parsed.kind === "index") {
      next = choosePlatform(parsed.index, platform).digest;
      continue;
    }
    const { manifest } = parsed;
    assertImage(manifest);
    const configBytes = await repository.blob(manifest.config, signal);
    blobs.set(manifest.config.digest, configBytes);
    const config = parseConfig(configBytes);
    assertRuns(platform, config.platform);
    if (config.diffIds.length !== manifest.layers.length) {
      throw new RuntimeError(
        "failed-precondition",
        `its configuration names ${config.diffIds.length} layers, its manifest ${manifest.layers.length}`,
      );
    }
    const chain = chainIds(config.diffIds);
    return {
      id: manifest.config.digest,
      target,
      config,
      layers: manifest.layers.map((layer, n) => ({
        ...layer,
        diffId: config.diffIds[n]!,
        chainId: chain[n]!,
      })),
      blobs,
      size: manifest.layers.reduce((sum, layer) => sum + layer.size, manifest.config.size),
    };
  }
  throw new RuntimeError("failed-precondition", `its indexes are nested more than ${maxIndexDepth} deep`);
};

/** What a layer takes on disk. */
export type LayerUsage = { bytes: number; inodes: number };

export type UnpackOptions = {
  repository: Repository;
  snapshotter: Snapshotter;
  /** Folder for blobs on their way; whatever is in it after a restart is rubbish. */
  staging: string;
  /** Bounds the downloads of all pulls together. */
  downloads: Semaphore;
  /** Layers on their way, by chain ID, of all pulls. */
  flights: SingleFlight<LayerUsage | undefined>;
};

/**
 * Fetches and unpacks the layers that are not there yet: downloads run side by side, unpacking goes upwards from the
 * lowest. A layer becomes visible only when the digest of its blob and the diff ID of its content were right.
 * Returns what each layer unpacked by this call takes.
 */
export const unpackLayers = async (
  layers: readonly Layer[],
  options: UnpackOptions,
  signal: AbortSignal,
): Promise<Map<string, LayerUsage>> => {
  // The first failure stops the layers that nobody else waits for.
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const usages = new Map<string, LayerUsage>();
  let below: Promise<unknown> = Promise.resolve();
  const unpacked = layers.map((layer, n) => {
    const parent = below;
    const parentId = layers[n - 1]?.chainId;
    const work = async (): Promise<void> => {
      const usage = await options.flights.run(
        layer.chainId,
        (shared) => unpackLayer(layer, parentId, parent, options, shared),
        either,
      );
      if (usage !== undefined) usages.set(layer.chainId, usage);
    };
    const done = work().catch((error) => {
      failed.abort(error);
      throw error;
    });
    below = done;
    return done;
  });
  const results = await Promise.allSettled(unpacked);
  if (results.some(({ status }) => status === "rejected")) {
    signal.throwIfAborted();
    throw failed.signal.reason;
  }
  return usages;
};

const unpackLayer = async (
  layer: Layer,
  parentId: string | undefined,
  parent: Promise<unknown>,
  options: UnpackOptions,
  signal: AbortSignal,
): Promise<LayerUsage | undefined> => {
  const { snapshotter } = options;
  if (snapshotter.has(layer.chainId)) return undefined;
  const file = join(options.staging, randomUUID());
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(file, { force: true }));
  await options.downloads.run(() => options.repository.download(layer, file, signal), signal);
  await parent;
  signal.throwIfAborted();
  const count = tarUsage();
  let complete = false;
  const tar = async function* (): AsyncGenerator<Uint8Array> {
    yield* verified(decompressed(file, signal), layer, count.add);
    complete = true;
  };
  await snapshotter.extract(layer.chainId, parentId, tar(), signal);
  if (!complete && !snapshotter.has(layer.chainId)) {
    throw new RuntimeError("internal", `layer ${layer.chainId} was not unpacked to its end`);
  }
  if (!complete) {
    await snapshotter.removeLayer(layer.chainId);
    throw new RuntimeError("internal", `layer ${layer.chainId} was unpacked without being checked`);
  }
  return count.total();
};

const gzipMagic = Buffer.from([0x1f, 0x8b]);
const zstdMagic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);

/** The content of a layer blob: gzip and zstd are known by their first bytes, since media types are often wrong. */
export async function* decompressed(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const head = Buffer.alloc(4);
  {
    await using file = await open(path);
    await file.read(head, 0, 4, 0);
  }
  const source = createReadStream(path, { highWaterMark: 256 << 10 });
  const codec: Transform | undefined = head.subarray(0, 2).equals(gzipMagic)
    ? createGunzip({ chunkSize: 256 << 10 })
    : head.equals(zstdMagic)
      ? createZstdDecompress({ chunkSize: 256 << 10 })
      : undefined;
  if (codec === undefined) {
    for await (const chunk of source) {
      signal.throwIfAborted();
      yield chunk as Buffer;
    }
    return;
  }
  // An error of the source destroys the codec with it, so the loop below throws it.
  const flow = pipeline(source, codec, { signal });
  flow.catch(() => {});
  try {
    for await (const chunk of codec) yield chunk as Buffer;
  } catch (cause) {
    signal.throwIfAborted();
    throw new RuntimeError("failed-precondition", `a layer cannot be decompressed: ${String(cause)}`, {
      cause,
    });
  }
}

/** Passes a layer's content through and throws at its end unless it has the diff ID. */
async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  layer: Layer,
  count: (chunk: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  const algorithm = layer.diffId.slice(0, layer.diffId.indexOf(":"));
  const hash = createHash(algorithm);
  for await (const chunk of chunks) {
    hash.update(chunk);
    count(chunk);
    yield chunk;
  }
  const found = `${algorithm}:${hash.digest("hex")}`;
  if (found !== layer.diffId) {
    throw new RuntimeError(
      "failed-precondition",
      `the content of layer ${layer.digest} has the digest ${found}, its image says ${layer.diffId}`,
    );
  }
}

const block = 512;

/** Counts the bytes and entries of a tar that passes by in chunks, from nothing but its headers' size fields. */
const tarUsage = (): { add: (chunk: Uint8Array) => void; total: () => LayerUsage } => {
  const header = Buffer.alloc(block);
  let filled = 0;
  let skip = 0;
  let bytes = 0;
  let inodes = 0;
  return {
    add: (chunk) => {
      for (let at = 0; at < chunk.length; ) {
        if (skip > 0) {
          const step = Math.min(skip, chunk.length - at);
          skip -= step;
          at += step;
          continue;
        }
        const step = Math.min(block - filled, chunk.length - at);
        header.set(chunk.subarray(at, at + step), filled);
        filled += step;
        at += step;
        if (filled < block) continue;
        filled = 0;
        const size = tarSize(header);
        skip = Math.ceil(size / block) * block;
        // Extended headers (pax x and g, GNU L and K) describe another entry.
        if (header[0] !== 0 && !"xgLK".includes(String.fromCharCode(header[156] ?? 0))) {
          inodes++;
          bytes += size;
        }
      }
    },
    total: () => ({ bytes, inodes }),
  };
};

/** Size field of a tar header: octal text, or base 256 when its first bit is set. */
const tarSize = (header: Buffer): number => {
  if ((header[124] ?? 0) & 0x80) return Number(header.readBigUInt64BE(128) & 0xff_ffff_ffffn);
  const text = header
    .toString("latin1", 124, 136)
    .replace(/[\0 ]+$/g, "")
    .trim();
  return /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : 0;
};
