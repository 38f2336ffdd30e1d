import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { artifactPath } from "./artifact.ts";
import {
  assertImage,
  assertRuns,
  chainIds,
  choosePlatform,
  type Descriptor,
  isCheckpointImage,
  isImage,
  isTarLayer,
  type Manifest,
  type ParsedConfig,
  type Platform,
  parseConfig,
  parseManifest,
  sha256,
} from "./manifest.ts";
import type { Repository } from "./registry.ts";

/** A layer of an image and the place it takes: on the layers below it, known by its chain ID. */
export type Layer = Descriptor & {
  chainId: string;
  /** Digest of the uncompressed tar. An artifact does not say it of its layers. */
  diffId?: string;
  /** Set for a blob of an artifact: it becomes this file. */
  file?: string;
};

/** All that is known of an image before its layers are fetched. */
export type Resolved = {
  kind: "image" | "artifact" | "checkpoint";
  /** Digest of the configuration: the image ID. Of an artifact the manifest's: its configuration is often empty. */
  id: string;
  /** Digest of the manifest for this platform. */
  manifest: string;
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
    if (!isImage(manifest)) return artifactOf(manifest, { target, digest, blobs });
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
      kind: isCheckpointImage(manifest) ? "checkpoint" : "image",
      id: manifest.config.digest,
      manifest: digest,
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

/** An artifact: its layers are known by the digests of their blobs, since nothing says what is in them. */
const artifactOf = (
  manifest: Manifest,
  { target, digest, blobs }: Pick<Resolved, "target" | "blobs"> & { digest: string },
): Resolved => {
  const kinds = manifest.layers.map(
    (layer): Layer => ({
      ...layer,
      chainId: "",
      ...(isTarLayer(layer.mediaType) ? {} : { file: artifactPath(layer) }),
    }),
  );
  const chain = chainIds(
    kinds.map(({ file, digest: blob }) => sha256(JSON.stringify(["artifact", file ?? null, blob]))),
  );
  return {
    kind: "artifact",
    id: digest,
    manifest: digest,
    target,
    config: emptyConfig,
    layers: kinds.map((layer, n) => ({ ...layer, chainId: chain[n]! })),
    blobs,
    size: manifest.layers.reduce((sum, layer) => sum + layer.size, 0),
  };
};

const emptyConfig: ParsedConfig = {
  platform: {},
  diffIds: [],
  user: { username: "" },
  config: {
    user: "",
    env: [],
    entrypoint: [],
    cmd: [],
    workingDir: "",
    stopSignal: "",
    volumes: [],
    labels: {},
  },
};
