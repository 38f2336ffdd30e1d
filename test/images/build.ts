import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import { catalog, entriesOf, type ImageSpec, type LayerName } from "./catalog.ts";
import { e2eCatalog } from "./e2e.ts";
import { imageOf, type Layer, mediaTypes } from "./image.ts";
import { type Blob, blobOf, digestOf, hasManifest, pushBlob, pushManifest } from "./push.ts";
import { tarOf } from "./tar.ts";

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
 * them but e2e's, or those named, e.g. `bulkhead/test:1`. Takes well under a second when they are there.
 */
export const ensureTestImages = async (registry: string, names?: readonly string[]): Promise<TestImages> => {
  const url = registry.includes("://") ? registry : `http://${registry}`;
  const all = [...catalog, ...e2eCatalog];
  const unknown = names?.find((name) => !all.some((spec) => spec.names.includes(name)));
  if (unknown !== undefined)
    throw new RuntimeError("not-found", `Cannot find "${unknown}" among the test images`);
  const wanted =
    names === undefined ? catalog : all.filter((spec) => spec.names.some((name) => names.includes(name)));
  for (const spec of wanted) await pushImage(url, await build(spec));
  const { host } = new URL(url);
  const refs = Object.fromEntries(
    wanted.flatMap((spec) => spec.names.map((name) => [name, `${host}/${name}`])),
  );
  return { test: `${host}/bulkhead/test:1`, refs };
};

/** The same for the images of upstream's end-to-end suite. */
export const ensureE2eImages = (registry: string): Promise<TestImages> =>
  ensureTestImages(
    registry,
    e2eCatalog.flatMap((spec) => spec.names),
  );
