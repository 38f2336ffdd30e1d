import * as z from "zod";
import { isDigest } from "./reference.ts";

const digest = z.string().refine(isDigest);

/**
 * What is kept of an image on disk.
 *
 * - partial: its layers are being unpacked, or a pull of it failed on the way; not listed.
 * - present: it can be run.
 * - removed: no longer listed, but containers still stand on its layers.
 */
export const imageRecord = z.object({
  version: z.literal(1),
  state: z.enum(["partial", "present", "removed"]),
  kind: z.enum(["image", "artifact", "checkpoint"]).default("image"),
  id: digest,
  size: z.number(),
  layers: z.array(
    z.object({ chainId: digest, digest, bytes: z.number().default(0), inodes: z.number().default(0) }),
  ),
  /** Documents in blobs/ that belong to it: indexes, manifests and the configuration. */
  blobs: z.array(digest),
  user: z.object({ uid: z.number().optional(), username: z.string() }),
  config: z.object({
    user: z.string(),
    env: z.array(z.string()),
    entrypoint: z.array(z.string()),
    cmd: z.array(z.string()),
    workingDir: z.string(),
    stopSignal: z.string(),
    volumes: z.array(z.string()),
    labels: z.record(z.string(), z.string()),
  }),
});
export type ImageRecord = z.infer<typeof imageRecord>;

/** Names of images: name:tag and name@digest, each to an image ID. */
export const refsRecord = z.object({ version: z.literal(1), refs: z.record(z.string(), digest) });

/** What can go: records and the layers that only they held. */
export type Sweep = { records: ImageRecord[]; layers: string[]; blobs: string[] };

/**
 * Decides what to collect. An image that is present, held by a pull under way or in use by a container keeps its
 * layers and documents; so does a layer that it shares with one that goes. Layers come topmost first.
 */
export const planSweep = (
  records: Iterable<ImageRecord>,
  held: { images: ReadonlySet<string>; layers: ReadonlySet<string> },
): Sweep => {
  const keepLayers = new Set(held.layers);
  const keepBlobs = new Set<string>();
  const going: ImageRecord[] = [];
  for (const record of records) {
    if (record.state !== "present" && !held.images.has(record.id)) {
      going.push(record);
      continue;
    }
    for (const layer of record.layers) keepLayers.add(layer.chainId);
    for (const blob of record.blobs) keepBlobs.add(blob);
  }
  const layers = new Set<string>();
  const blobs = new Set<string>();
  // A chain shares its lower end with others, so going through each from its top keeps children before parents
  // only within one image; depth orders them across images.
  const depth = new Map<string, number>();
  for (const record of going) {
    record.layers.forEach(({ chainId }, n) => {
      if (!keepLayers.has(chainId)) depth.set(chainId, n);
    });
    for (const blob of record.blobs) if (!keepBlobs.has(blob)) blobs.add(blob);
  }
  for (const [chainId] of [...depth].sort(([, a], [, b]) => b - a)) layers.add(chainId);
  return { records: going, layers: [...layers], blobs: [...blobs] };
};
