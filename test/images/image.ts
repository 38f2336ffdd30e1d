import { type Blob, blobOf, descriptorOf } from "./push.ts";

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

/** What an image's configuration may say of how it runs (image-spec config.md). */
export type RunConfig = {
  User?: string;
  Entrypoint?: string[];
  Cmd?: string[];
  Env?: string[];
  WorkingDir?: string;
};

/** Configuration and manifest of an image of these layers (image-spec config.md and manifest.md). */
export const imageOf = (
  layers: readonly Layer[],
  config: RunConfig = {},
  annotations?: Record<string, string>,
  architecture: string = process.arch === "x64" ? "amd64" : process.arch,
): { config: Blob; manifest: Blob } => {
  const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  const configBlob = blobOf(mediaTypes.config, {
    architecture,
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
    ...(annotations && { annotations }),
  });
  return { config: configBlob, manifest };
};
