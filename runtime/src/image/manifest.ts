import { createHash } from "node:crypto";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import type { Image, ImageConfig } from "./images.ts";
import { isDigest } from "./reference.ts";

/** Media types of manifests and indexes that Bulkhead reads, in the order it prefers them. */
export const manifestTypes = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
] as const;

/** Bounds of what a registry may send; the distribution specification asks registries to take 4 MiB manifests. */
export const limits = { manifest: 4 << 20, config: 8 << 20, layers: 500, children: 1000 } as const;

const text = z.string().refine((value) => !value.includes("\0"), "must not contain NUL");
const digest = z.string().refine(isDigest, "must be a sha256 or sha512 digest");

const descriptor = z.object({
  mediaType: z.string().max(255),
  digest,
  size: z.int().min(0),
  /** Where a layer lies that its registry may not hand on. */
  urls: z.array(z.string().max(2048)).max(100).optional(),
  annotations: z.record(z.string(), z.string()).nullish(),
});
/** What a manifest says of a blob (image-spec descriptor.md). */
export type Descriptor = z.infer<typeof descriptor>;

const platform = z.object({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().optional(),
});
/** GOOS, GOARCH and variant, as image indexes name them. */
export type Platform = z.infer<typeof platform>;

const index = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(descriptor.extend({ platform: platform.optional() })).max(limits.children),
  // A document that is an index to one reader and a manifest to another is refused (CVE-2021-41190).
  layers: z.undefined().optional(),
  config: z.undefined().optional(),
});
type Index = z.infer<typeof index>;

const manifest = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: descriptor,
  layers: z.array(descriptor).max(limits.layers),
  annotations: z.record(z.string(), z.string()).nullish(),
  manifests: z.undefined().optional(),
});
export type Manifest = z.infer<typeof manifest>;

const strings = z
  .array(text)
  .nullish()
  .transform((value) => value ?? []);
const keys = z
  .record(text, z.unknown())
  .nullish()
  .transform((value) => Object.keys(value ?? {}));

const processConfig = z.object({
  User: text.nullish(),
  Env: strings,
  Entrypoint: strings,
  Cmd: strings,
  WorkingDir: text.nullish(),
  StopSignal: z
    .string()
    .regex(/^(?:(?:SIG)?[A-Z][A-Z0-9+-]{0,15}|[0-9]{1,2})?$/i)
    .nullish(),
  Volumes: keys,
  Labels: z.record(z.string(), text).nullish(),
});

const config = z.object({
  os: z.string().optional(),
  architecture: z.string().optional(),
  variant: z.string().optional(),
  config: processConfig.nullish(),
  rootfs: z.object({
    type: z.literal("layers"),
    diff_ids: z.array(digest).max(limits.layers),
  }),
});

/** An image configuration (image-spec config.md), reduced to what is used of it and made safe to use. */
export type ParsedConfig = {
  platform: Partial<Platform>;
  diffIds: string[];
  user: Image["user"];
  config: ImageConfig;
};

const parse = <T>(schema: z.ZodType<T>, bytes: Uint8Array, what: string): T => {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new RuntimeError("failed-precondition", `the ${what} is not JSON`, { cause });
  }
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new RuntimeError(
    "failed-precondition",
    `the ${what} is not valid: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? "unknown"}`,
  );
};

const isIndexType = (type: string): boolean =>
  type.endsWith("image.index.v1+json") || type.includes("manifest.list.v2");

/**
 * Reads an index or a manifest. What the registry's Content-Type says and what the document says of itself must be
 * the same kind of thing, and the document must be of that kind only.
 */
export const parseManifest = (
  bytes: Uint8Array,
  contentType: string,
): { kind: "index"; index: Index } | { kind: "manifest"; manifest: Manifest } => {
  const head = parse(
    z.object({
      mediaType: z.string().optional(),
      schemaVersion: z.unknown(),
      manifests: z.unknown().optional(),
    }),
    bytes,
    "manifest",
  );
  if (head.schemaVersion === 1) {
    throw new RuntimeError(
      "failed-precondition",
      "the manifest is of Docker's schema 1, which is not supported",
    );
  }
  const known = (type: string | undefined): string | undefined =>
    manifestTypes.find((candidate) => candidate === type?.split(";")[0]?.trim());
  const header = known(contentType);
  const own = known(head.mediaType);
  const type = own ?? header ?? (head.manifests === undefined ? manifestTypes[2] : manifestTypes[0]);
  if (own !== undefined && header !== undefined && isIndexType(own) !== isIndexType(header)) {
    throw new RuntimeError(
      "failed-precondition",
      `the manifest says it is ${own}, its registry says ${header}`,
    );
  }
  return isIndexType(type)
    ? { kind: "index", index: parse(index, bytes, "image index") }
    : { kind: "manifest", manifest: parse(manifest, bytes, "manifest") };
};

const imageConfigTypes = [
  "application/vnd.oci.image.config.v1+json",
  "application/vnd.docker.container.image.v1+json",
];
const layerType =
  /^application\/vnd\.(?:oci\.image\.layer(?:\.nondistributable)?\.v1\.tar|docker\.image\.rootfs(?:\.foreign)?\.diff\.tar)(?:[.+](?:gzip|zstd))?$/;

/** True for a layer that may lie elsewhere than its image. */
export const isForeign = ({ mediaType }: Pick<Descriptor, "mediaType">): boolean =>
  /\.(?:foreign\.diff|nondistributable\.v1)\.tar/.test(mediaType);

/** True for a media type whose blob is a tar to be unpacked. */
export const isTarLayer = (mediaType: string): boolean => layerType.test(mediaType);

/** True for the manifest of a container image; any other is an artifact's (image-spec manifest.md, "Guidelines for Artifact Usage"). */
export const isImage = (manifest: Manifest): boolean => imageConfigTypes.includes(manifest.config.mediaType);

/** By these annotations, which CRI-O's and containerd's users set, an image says that it is a checkpoint. */
const checkpointAnnotations = [
  "io.kubernetes.cri-o.annotations.checkpoint.name",
  "org.criu.checkpoint.container.name",
];

/** True for an image whose layers are a checkpoint archive's files. What else its annotations say is not read. */
export const isCheckpointImage = ({ annotations }: Pick<Manifest, "annotations">): boolean =>
  checkpointAnnotations.some((name) => annotations?.[name] !== undefined);

/** Throws unless the manifest is of a container image that can be read. */
export const assertImage = (manifest: Manifest): void => {
  if (!imageConfigTypes.includes(manifest.config.mediaType)) {
    throw new RuntimeError(
      "failed-precondition",
      `it is not a container image but ${manifest.config.mediaType}`,
    );
  }
  if (manifest.config.size > limits.config) {
    throw new RuntimeError("failed-precondition", `its configuration is larger than ${limits.config} bytes`);
  }
  const odd = manifest.layers.find((layer) => !layerType.test(layer.mediaType));
  if (odd !== undefined) {
    throw new RuntimeError(
      "failed-precondition",
      `its layer ${odd.digest} is of the unknown type ${odd.mediaType}`,
    );
  }
};

/** The platform that images must be for. */
export const hostPlatform = (): Platform => {
  const architectures: Partial<Record<NodeJS.Architecture, string>> = { x64: "amd64", ia32: "386" };
  return { os: "linux", architecture: architectures[process.arch] ?? process.arch };
};

const variantOf = (of: Partial<Platform>): string => of.variant ?? (of.architecture === "arm64" ? "v8" : "");
/** ARM's variants by age; x86-64's levels. */
const levelOf = (of: Partial<Platform>): number => Number(/^v([1-9])$/.exec(variantOf(of))?.[1] ?? 1);
const runs = (host: Platform, candidate: Partial<Platform>): boolean =>
  candidate.os === host.os && candidate.architecture === host.architecture;

/** The entry of an index that suits the host: same system and architecture, its own variant before any other. */
export const choosePlatform = (from: Index, host: Platform): Descriptor => {
  const fitting = from.manifests.filter(
    (entry) => entry.platform !== undefined && runs(host, entry.platform),
  );
  // Newest variant that the host is known to run; else the oldest there is.
  const level = (entry: (typeof fitting)[number]): number => levelOf(entry.platform ?? {});
  const byLevel = fitting.toSorted((a, b) => level(a) - level(b));
  const chosen =
    fitting.find((entry) => variantOf(entry.platform ?? {}) === variantOf(host)) ??
    byLevel.findLast((entry) => level(entry) <= levelOf(host)) ??
    byLevel[0] ??
    (from.manifests.length === 1 && from.manifests[0]?.platform === undefined
      ? from.manifests[0]
      : undefined);
  if (chosen !== undefined) return chosen;
  const offered = from.manifests
    .map(({ platform }) => (platform ? `${platform.os}/${platform.architecture}` : "unnamed"))
    .slice(0, 20);
  throw new RuntimeError(
    "not-found",
    `it is not made for ${host.os}/${host.architecture}, only for ${offered.join(", ") || "nothing"}`,
  );
};

/**
 * USER of an image configuration. A number is a user ID of 31 bits or the image is refused: one that overflows
 * becomes root elsewhere (CVE-2024-40635), and a number is never looked up as a name.
 */
export const parseUser = (user: string): Image["user"] => {
  if (user === "") return { username: "" };
  if (user.length > 256 || /[\p{Cc}\s]/u.test(user) || user.startsWith(":")) {
    throw new RuntimeError(
      "failed-precondition",
      `its USER ${JSON.stringify(user.slice(0, 80))} is not a user`,
    );
  }
  const [name = "", group] = user.split(":", 2);
  const numeric = (part: string): number => {
    if (!/^[0-9]{1,10}$/.test(part) || Number(part) > 0x7fffffff) {
      throw new RuntimeError(
        "failed-precondition",
        `its USER ${JSON.stringify(user)} is not an ID of 31 bits`,
      );
    }
    return Number(part);
  };
  const looksNumeric = /^[-+]?[0-9]+$/;
  if (group !== undefined && looksNumeric.test(group)) numeric(group);
  return looksNumeric.test(name) ? { uid: numeric(name), username: "" } : { username: name };
};

const absolute = (path: string): string => (path.startsWith("/") ? path : `/${path}`);

/** Reads an image configuration; everything in it is hostile. */
export const parseConfig = (bytes: Uint8Array): ParsedConfig => {
  const parsed = parse(config, bytes, "image configuration");
  const process = parsed.config;
  const workingDir = process?.WorkingDir ?? "";
  return {
    platform: {
      ...(parsed.os === undefined ? {} : { os: parsed.os }),
      ...(parsed.architecture === undefined ? {} : { architecture: parsed.architecture }),
    },
    diffIds: parsed.rootfs.diff_ids,
    user: parseUser(process?.User ?? ""),
    config: {
      user: process?.User ?? "",
      // An entry without "=" unsets the variable for Docker; runc refuses it.
      env: (process?.Env ?? []).filter((entry) => entry.indexOf("=") > 0),
      entrypoint: process?.Entrypoint ?? [],
      cmd: process?.Cmd ?? [],
      workingDir: workingDir === "" ? "" : absolute(workingDir),
      stopSignal: process?.StopSignal ?? "",
      volumes: (process?.Volumes ?? []).map(absolute),
      labels: process?.Labels ?? {},
    },
  };
};

/** Throws when the configuration names another platform than the host's. */
export const assertRuns = (host: Platform, image: Partial<Platform>): void => {
  if (runs(host, { os: image.os || host.os, architecture: image.architecture || host.architecture })) return;
  throw new RuntimeError(
    "not-found",
    `it is not made for ${host.os}/${host.architecture} but for ${image.os ?? "linux"}/${image.architecture ?? "?"}`,
  );
};

export const sha256 = (data: Uint8Array | string): string =>
  `sha256:${createHash("sha256").update(data).digest("hex")}`;

/** Chain IDs of the layers, lowest first (image-spec config.md, "Layer ChainID"). */
export const chainIds = (diffIds: readonly string[]): string[] => {
  const chain: string[] = [];
  for (const diffId of diffIds) {
    const parent = chain.at(-1);
    chain.push(parent === undefined ? diffId : sha256(`${parent} ${diffId}`));
  }
  return chain;
};
