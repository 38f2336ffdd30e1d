import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import { type ImageStore, type ImagesOptions, openImages } from "../../runtime/src/image/store.ts";
import { createLinux } from "../../runtime/src/linux/linux-ffi.ts";
import { overlay } from "../../runtime/src/snapshot/overlay.ts";
import type { Snapshotter } from "../../runtime/src/snapshot/snapshotter.ts";
import { run } from "../tools/run.ts";
import { imageOf, type Layer, mediaTypes } from "./image.ts";
import { blobOf, digestOf, pushBlob, pushManifest, type Target } from "./push.ts";
import { type RunningRegistry, startRegistry } from "./registry.ts";
import { type Entry, tarOf } from "./tar.ts";

export const never = new AbortController().signal;
const log = { debug: () => {}, info: () => {}, warn: () => {} };

export const gzipLayer = (...entries: Entry[]): Layer => {
  const tar = tarOf(entries);
  return { diffId: digestOf(tar), blob: blobOf(mediaTypes.gzip, gzipSync(tar)) };
};
export const text = (path: string, data: string | Uint8Array): Entry => ({ type: "file", path, data });

/** Pushes an image of these layers and says its documents. */
export const push = async (
  target: Target,
  tag: string,
  layers: Layer[],
): Promise<ReturnType<typeof imageOf>> => {
  const image = imageOf(layers);
  for (const blob of [...layers.map((layer) => layer.blob), image.config]) await pushBlob(target, blob);
  await pushManifest(target, tag, image.manifest);
  return image;
};

/** A certificate for 127.0.0.1 that signs itself. */
export const selfSigned = async (folder: string): Promise<{ cert: string; key: string }> => {
  const [key, cert] = [join(folder, "tls.key"), join(folder, "tls.crt")];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const names = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"];
  await run(["openssl", "req", ...kind, ...names, "-keyout", key, "-out", cert]);
  return { cert, key };
};

/** A store on the real overlay snapshotter, new for each test, and one real registry for the file. */
export const useStore = () => {
  const use = {
    scratch: "",
    root: "",
    registry: undefined as unknown as RunningRegistry,
    images: undefined as unknown as ImageStore,
    snapshotter: undefined as unknown as Snapshotter & AsyncDisposable,
    /** Opens the store again with other options. */
    reopen: async (options: Partial<ImagesOptions>): Promise<void> => {
      await use.images?.[Symbol.asyncDispose]();
      const given = { root: join(use.root, "images"), snapshotter: use.snapshotter, mirrors: {}, log };
      use.images = await openImages({ ...given, ...options });
    },
    staged: (): Promise<string[]> => readdir(join(use.root, "images", "staging")),
    /** Reads files of an image through a read-only mount of its layers. */
    read: async (layers: string[], ...paths: string[]): Promise<string[]> => {
      const target = join(use.root, "mounted");
      await mkdir(target, { recursive: true });
      await use.snapshotter.mountReadonly("read", layers, target);
      try {
        return await Promise.all(paths.map((path) => readFile(join(target, path), "utf8")));
      } finally {
        await use.snapshotter.unmount(target);
        await use.snapshotter.removeContainer("read");
      }
    },
  };
  beforeAll(async () => {
    use.scratch = await mkdtemp(join(tmpdir(), "bh-img-"));
    use.registry = await startRegistry({ dir: join(use.scratch, "registry") });
  });
  afterAll(async () => {
    await use.registry.stop();
    await rm(use.scratch, { recursive: true, force: true });
  });
  beforeEach(async () => {
    use.root = await mkdtemp(join(use.scratch, "root-"));
    use.snapshotter = await overlay(join(use.root, "layers"), createLinux());
    await use.reopen({});
  });
  afterEach(async () => {
    await use.images[Symbol.asyncDispose]();
    await use.snapshotter[Symbol.asyncDispose]();
  });
  return use;
};
