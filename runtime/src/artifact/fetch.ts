import { randomUUID } from "node:crypto";
import { lstat, mkdir, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { ArtifactManifest } from "@bulkhead/lib/api/artifact-manifest.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Logger } from "pino";
import { syncFolder, writeDurably } from "../image/atomic-file.ts";
import { BlobStage } from "../image/blob-stage.ts";
import { hostPlatform, type Platform, sha256 } from "../image/manifest.ts";
import { nameOf, parseReference, type Reference } from "../image/reference.ts";
import { Registry, type Repository } from "../image/registry.ts";
import { type Layer, type Resolved, resolveImage } from "../image/resolve.ts";
import { ruleFor, type SignatureRule, verifySignature } from "../image/signature.ts";
import { ArtifactTree, type Layout, refusal } from "./tree.ts";
import { type ArtifactLimits, Contents, layOut, unpackTar } from "./unpack.ts";

/**
 * An artifact: the programs of a wall as an OCI image or artifact, fetched by digest and unpacked into a directory
 * that its caller names: root/ with the files, and manifest.json with their digests (lib/api/artifact-manifest.ts).
 * Nothing of it is unpacked before its digest and its signature were verified, and the directory is there only when
 * all of it is.
 */

export type ArtifactRequest = {
  /** By digest. */
  image: string;
  /** Absolute; must not be there. DIRECTORY.*.part beside it is ours meanwhile. */
  directory: string;
  /** HOST[:PORT][/PATH] that is asked instead of the image's own registry. */
  registry?: string | undefined;
  /** Files of public keys, one of which must have signed it. None: the node's own rules alone decide. */
  keys: readonly string[];
  identity: SignatureRule["identity"];
  platform?: Platform | undefined;
  limits: ArtifactLimits;
};

/** What the node says of registries and signatures, as its images have it. */
export type ArtifactSources = {
  mirrors: Readonly<Record<string, readonly string[]>>;
  certsDir: string | undefined;
  credentialsFile: string | undefined;
  signatures: readonly SignatureRule[];
  log: Pick<Logger, "debug" | "warn">;
};

export type FetchedArtifact = {
  /** SHA-256 of manifest.json: who keeps it knows whether the list is still the one that was written. */
  list: string;
  manifest: ArtifactManifest;
};

/** Kata's static release and what kata-deploy installs know their files by this path. */
const kataHome = "/opt/kata";
const tarball = /^(?:opt\/kata-artifacts\/tarballs\/)?kata-static[^/]*\.tar(?:\.(gz|zst|xz))?$/;

/** Fetches, verifies and unpacks an artifact. */
export const fetchArtifact = async (
  request: ArtifactRequest,
  sources: ArtifactSources,
  signal: AbortSignal,
): Promise<FetchedArtifact> => {
  const { image, directory, limits } = request;
  return await telling(`fetch artifact ${image}`, signal, async () => {
    if ((await lstat(directory).catch(() => undefined)) !== undefined)
      throw new RuntimeError("already-exists", `"${directory}" is there already`);
    await using registry = new Registry(sources);
    const { repository, resolved, platform, digest } = await verified(registry, request, sources, signal);
    await removeParts(directory);
    // A name of its own: what another fetch that was left alone still does, it does elsewhere.
    const part = `${directory}.${randomUUID()}.part`;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rm(part, { recursive: true, force: true }));
    for (const folder of ["staging", "contents"])
      await mkdir(join(part, folder), { recursive: true, mode: 0o700 });

    const contents = new Contents(join(part, "contents"), limits);
    if (resolved.size > limits.bytes)
      throw new RuntimeError("resource-exhausted", `it has more than ${limits.bytes} bytes`);
    // Compressed and unpacked at the same time; what it becomes in the end nobody knows yet.
    contents.assertRoom(2 * resolved.size);
    const stage = { folder: join(part, "staging"), maxDownloads: 1, stallMs: 60_000, keepMs: 0 };
    const tree = await unpackLayers(resolved.layers, repository, stage, contents, signal);
    const layout = await layoutOf(tree, contents, signal);
    if (layout.files.length === 0) throw new RuntimeError("failed-precondition", "it has no files");
    const files = await layOut(layout, contents, join(part, "root"), signal);

    const manifest: ArtifactManifest = {
      version: 1,
      digest,
      manifest: resolved.manifest,
      platform: `${platform.os}/${platform.architecture}`,
      files,
    };
    const text = `${JSON.stringify(manifest)}\n`;
    await writeDurably(join(part, "manifest.json"), text);
    for (const folder of ["staging", "contents"]) await rm(join(part, folder), { recursive: true });
    await syncFolder(part);
    await rename(part, directory);
    await syncFolder(dirname(directory));
    return { list: sha256(text), manifest };
  });
};

/** Verifies an artifact's digest and signature, and fetches nothing else of it. Returns the manifest for the platform. */
export const verifyArtifact = async (
  request: Omit<ArtifactRequest, "directory" | "limits">,
  sources: ArtifactSources,
  signal: AbortSignal,
): Promise<{ digest: string; manifest: string }> =>
  await telling(`verify artifact ${request.image}`, signal, async () => {
    await using registry = new Registry(sources);
    const { resolved, digest } = await verified(registry, request, sources, signal);
    return { digest, manifest: resolved.manifest };
  });

const telling = async <T>(what: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    signal.throwIfAborted();
    const code = error instanceof RuntimeError ? error.code : "internal";
    throw new RuntimeError(code, `Cannot ${what}: ${messageOf(error)}`, { cause: error });
  }
};

/** What earlier fetches that were killed left. */
const removeParts = async (directory: string): Promise<void> => {
  const names = await readdir(dirname(directory)).catch(() => []);
  for (const name of names)
    if (name.startsWith(`${basename(directory)}.`) && name.endsWith(".part"))
      await rm(join(dirname(directory), name), { recursive: true, force: true });
};

const verified = async (
  registry: Registry,
  request: Omit<ArtifactRequest, "directory" | "limits">,
  sources: ArtifactSources,
  signal: AbortSignal,
) => {
  const reference = parseReference(request.image);
  const { digest } = reference;
  if (digest?.startsWith("sha256:") !== true)
    throw new RuntimeError("invalid-argument", "it must be named by digest (…@sha256:…)");
  const repository = registry.repository(asked(reference, request.registry), undefined);
  const platform = request.platform ?? hostPlatform();
  const resolved = await resolveImage(repository, digest, platform, signal);
  await assertSigned(request, reference, resolved, repository, sources.signatures, signal);
  return { digest, repository, resolved, platform };
};

/** Where to ask: the image's own registry, or its path in the one that stands for all. */
const asked = (reference: Reference, registry: string | undefined): Reference =>
  registry === undefined
    ? reference
    : parseReference(`${registry.replace(/\/+$/, "")}/${reference.path}@${reference.digest}`);

/** The request's keys and the node's rule for the image must both be content. */
const assertSigned = async (
  request: Pick<ArtifactRequest, "keys" | "identity">,
  reference: Reference,
  { target, manifest }: Resolved,
  repository: Repository,
  rules: readonly SignatureRule[],
  signal: AbortSignal,
): Promise<void> => {
  const { keys, identity } = request;
  const own: SignatureRule = { images: [nameOf(reference)], keys, identity };
  for (const rule of [own, ruleFor(rules, reference)])
    if (rule !== undefined) await verifySignature(rule, reference, [target, manifest], repository, signal);
};

const unpackLayers = async (
  layers: readonly Layer[],
  repository: Repository,
  options: ConstructorParameters<typeof BlobStage>[0],
  contents: Contents,
  signal: AbortSignal,
): Promise<ArtifactTree> => {
  const tree = new ArtifactTree();
  await using stage = new BlobStage(options);
  for (const layer of layers) {
    tree.nextLayer();
    await using blob = await stage.fetch(layer, repository, signal);
    if (layer.file === undefined) {
      await unpackTar(blob.path, { tree, contents }, { diffId: layer.diffId }, signal);
      continue;
    }
    const content = await contents.adopt(blob.path, layer.size);
    tree.file(placeOfBlob(layer.file).split("/"), content, layer.size, false);
  }
  return tree;
};

/** A blob of an artifact that is named without a folder is a program. */
const placeOfBlob = (file: string): string =>
  file.includes("/") || tarball.test(file) || /^sha(256|512)-/.test(file) ? file : `bin/${file}`;

/**
 * What is taken of an image. Of kata-deploy's images only what it would install: the tarballs of Kata's release, or
 * the release itself, whatever else stands in the image; of any other image all of it.
 */
const layoutOf = async (tree: ArtifactTree, contents: Contents, signal: AbortSignal): Promise<Layout> => {
  const tarballs = tree.filesBelow("").filter(({ name }) => tarball.test(name));
  if (tarballs.length === 0) {
    const root = ["opt/kata-artifacts/opt/kata", "opt/kata"].find((path) => tree.isDirectory(path));
    return root === undefined ? tree.layout("", undefined) : tree.layout(root, kataHome);
  }
  const kata = new ArtifactTree();
  for (const { name, content } of tarballs.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    if (name.endsWith(".xz")) throw refusal(name, "is compressed by xz: it must be gzip or zstd");
    kata.nextLayer();
    const place = ([opt, home, ...rest]: string[]): string[] | undefined =>
      opt === "opt" && home === "kata" && rest.length > 0 ? rest : undefined;
    await unpackTar(contents.path(content), { tree: kata, contents }, { place }, signal);
  }
  return kata.layout("", kataHome);
};
