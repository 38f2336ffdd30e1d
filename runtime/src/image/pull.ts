import { createHash } from "node:crypto";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Snapshotter } from "../snapshot/snapshotter.ts";
import { fileAsTar } from "./artifact.ts";
import type { BlobStage } from "./blob-stage.ts";
import { decompressed } from "./decompress.ts";
import type { Repository } from "./registry.ts";
import type { Layer } from "./resolve.ts";
import type { SingleFlight } from "./single-flight.ts";
import { type LayerUsage, tarUsage } from "./tar-usage.ts";

export type UnpackOptions = {
  repository: Repository;
  snapshotter: Snapshotter;
  /** Where blobs of all pulls come in. */
  stage: Pick<BlobStage, "fetch">;
  /** Layers on their way, by chain ID, of all pulls. */
  flights: SingleFlight<LayerUsage | undefined>;
};

/**
 * Fetches and unpacks the layers that are not there yet, side by side; they come to stand upwards from the lowest. A layer becomes visible only when the digest of its blob and the diff ID of its content were right.
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
  await using blob = await options.stage.fetch(layer, options.repository, signal);
  await parent;
  signal.throwIfAborted();
  const count = tarUsage();
  let complete = false;
  const tar = async function* (): AsyncGenerator<Uint8Array> {
    const content =
      layer.file === undefined
        ? decompressed(blob.path, signal)
        : fileAsTar(blob.path, layer.file, layer.size);
    yield* verified(content, layer, count.add);
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

/** Passes a layer's content through and throws at its end unless it has the diff ID. */
async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  layer: Layer,
  count: (chunk: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  if (layer.diffId === undefined) {
    for await (const chunk of chunks) {
      count(chunk);
      yield chunk;
    }
    return;
  }
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
