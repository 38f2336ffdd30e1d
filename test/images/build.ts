import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import { catalog, entriesOf, type ImageSpec, type LayerName } from "./catalog.ts";
import { type Blob, blobOf, descriptorOf, digestOf, hasManifest, pushBlob, pushManifest } from "./push.ts";
import { tarOf } from "./tar.ts";

export const mediaTypes = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  tar: "application/vnd.oci.image.layer.v1.tar",
} as const;

/** A layer ready to be pushed, with the digest of its uncompressed content. */
export type Layer = { diffId: string; blob: Blob };

/** An image ready to be pushed. */
export type BuiltImage = { names: readonly string[]; layers: Layer[]; config: Blob; manifest: Blob };

/** Compresses a layer; the result is kept by its content, for compressing takes longer than all the rest. */
const layerOf = async (name: LayerName): Promise<Layer> => {
  const tar = tarOf(await entriesOf(name));
  const diffId = digestOf(tar);
  const kept = inCache("images", "layers", `${diffId.slice("sha256:".length)}.tar.gz`);
  if (!existsSync(kept)) {
    await mkdir(inCache("images", "layers"), { recursive: true });
    const scratch = `${kept}.${randomUUID()}`;
    await writeFile(scratch, await promisify(gzip)(tar));
    await rename(scratch, kept);
  }
  return { diffId, blob: blobOf(mediaTypes.gzip, await readFile(kept)) };
};

/** Configuration and manifest of an image of these layers (image-spec config.md and manifest.md). */
export const imageOf = (
  layers: readonly Layer[],
  config: ImageSpec["config"] = {},
): { config: Blob; manifest: Blob } => {
  const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  const configBlob = blobOf(mediaTypes.config, {
    architecture: process.arch === "x64" ? "amd64" : process.arch,
    os: "linux",
    created: "1970-01-01T00:00:00Z",
    config: { Env: [path], ...config },
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
  });
  const manifest = blobOf(mediaTypes.manifest, {
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    config: descriptorOf(configBlob),
    layers: layers.map(({ blob }) => descriptorOf(blob)),
  });
  return { config: configBlob, manifest };
};

const built = new Map<LayerName, Promise<Layer>>();
const layerOnce = (name: LayerName): Promise<Layer> => {
  const known = built.get(name) ?? layerOf(name);
  built.set(name, known);
  known.catch(() => built.delete(name));
  return known;
};

const build = async (spec: ImageSpec): Promise<BuiltImage> => {
  const layers = await Promise.all(spec.layers.map(layerOnce));
  return { names: spec.names, layers, ...imageOf(layers, spec.config) };
};

/** Pushes an image under all its names; what the registry has is not sent again. */
export const pushImage = async (url: string, image: BuiltImage): Promise<void> => {
  for (const name of image.names) {
    const colon = name.lastIndexOf(":");
    const target = { url, repository: name.slice(0, colon) };
    const tag = name.slice(colon + 1);
    if (await hasManifest(target, tag, image.manifest.digest)) continue;
    for (const blob of [...image.layers.map((layer) => layer.blob), image.config])
      await pushBlob(target, blob);
    await pushManifest(target, tag, image.manifest);
  }
};

/** References of the test images in a registry. */
export type TestImages = {
  /** HOST/bulkhead/test:1: a shell, the usual tools and an HTTP server (busybox). */
  test: string;
  /** Name in the catalog → HOST/NAME. */
  refs: Record<string, string>;
};

/**
 * Makes sure that the registry at `registry` (http://HOST:PORT, or HOST:PORT for the same) has the test images: all of
 * them, or those named, e.g. `bulkhead/test:1`. Takes well under a second when they are there.
 */
export const ensureTestImages = async (registry: string, names?: readonly string[]): Promise<TestImages> => {
  const url = registry.includes("://") ? registry : `http://${registry}`;
  const unknown = names?.find((name) => !catalog.some((spec) => spec.names.includes(name)));
  if (unknown !== undefined)
    throw new RuntimeError("not-found", `Cannot find "${unknown}" among the test images`);
  const wanted = catalog.filter(
    (spec) => names === undefined || spec.names.some((name) => names.includes(name)),
  );
  for (const spec of wanted) await pushImage(url, await build(spec));
  const { host } = new URL(url);
  const refs = Object.fromEntries(
    catalog.flatMap((spec) => spec.names.map((name) => [name, `${host}/${name}`])),
  );
  return { test: `${host}/bulkhead/test:1`, refs };
};
