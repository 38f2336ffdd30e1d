import { span } from "@bulkhead/lib/tracing/span.ts";
import type { LayerUsage, Snapshotter } from "../snapshot/snapshotter.ts";
import { fileAsTar } from "./artifact.ts";
import type { BlobStage } from "./blob-stage.ts";
import type { Repository } from "./registry.ts";
import type { Layer } from "./resolve.ts";
import type { SingleFlight } from "./single-flight.ts";

export type UnpackOptions = {
  repository: Repository;
  snapshotter: Snapshotter;
  /** Where blobs of all pulls come in. */
  stage: Pick<BlobStage, "fetch">;
  /** Layers on their way, by chain ID, of all pulls. */
  flights: SingleFlight<LayerUsage | undefined>;
  /** No layer comes to stand before this. */
  recorded: Promise<void>;
};

/**
 * Fetches and unpacks the layers that are not there yet, side by side; they come to stand upwards from the lowest. A
 * layer becomes visible only when the digest of its blob and the diff ID of its content were right. Returns what each layer unpacked by this call takes.
 */
export const unpackLayers = async (
  layers: readonly Layer[],
  options: UnpackOptions,
  signal: AbortSignal,
): Promise<Map<string, LayerUsage>> => {
  // The first failure stops the layers that nobody else waits for.
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  options.recorded.catch((error) => failed.abort(error));
  const usages = new Map<string, LayerUsage>();
  let below: Promise<unknown> = options.recorded;
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
      // One that was there already, or came by another pull, did not wait for it.
      await parent;
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
  const what = { "bulkhead.layer.digest": layer.digest, "bulkhead.layer.bytes": layer.size };
  await using blob = await span("fetch layer", what, () =>
    options.stage.fetch(layer, options.repository, signal),
  );
  // Read beside the layers below, off the main thread, where the diff ID of the content is checked.
  const { diffId } = layer;
  const source =
    layer.file !== undefined
      ? fileAsTar(blob.path, layer.file, layer.size)
      : { file: blob.path, ...(diffId === undefined ? {} : { diffId }) };
  return await span("unpack layer", what, () =>
    snapshotter.extract(layer.chainId, parentId, source, signal, parent),
  );
};
