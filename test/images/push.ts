import { createHash } from "node:crypto";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** A blob to push; manifests and indexes are pushed as documents of their media type. */
export type Blob = { mediaType: string; digest: string; bytes: Uint8Array };

/** What a manifest says of a blob. */
export type Descriptor = { mediaType: string; digest: string; size: number };

export const digestOf = (bytes: Uint8Array): string =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

export const blobOf = (mediaType: string, content: Uint8Array | object): Blob => {
  const bytes = content instanceof Uint8Array ? content : Buffer.from(JSON.stringify(content));
  return { mediaType, digest: digestOf(bytes), bytes };
};

export const descriptorOf = ({ mediaType, digest, bytes }: Blob): Descriptor => ({
  mediaType,
  digest,
  size: bytes.length,
});

/** Where to push: a repository of a registry in plain HTTP. */
export type Target = { url: string; repository: string; authorization?: string };

const ask = async (
  target: Target,
  method: string,
  path: string,
  init: RequestInit = {},
): Promise<Response> => {
  const headers = {
    ...init.headers,
    ...(target.authorization ? { authorization: target.authorization } : {}),
  };
  return await fetch(new URL(path, target.url), { ...init, method, headers });
};

const expect = async (response: Response, what: string): Promise<Response> => {
  if (response.ok) return response;
  throw new RuntimeError(
    "unknown",
    `Cannot push ${what}: ${response.status} ${(await response.text()).slice(0, 300)}`,
  );
};

/** Uploads a blob in one piece (distribution-spec, "Pushing a blob monolithically") unless it is there. */
export const pushBlob = async (target: Target, blob: Blob): Promise<void> => {
  const base = `/v2/${target.repository}/blobs`;
  const there = await ask(target, "HEAD", `${base}/${blob.digest}`);
  if (there.ok) return;
  const begun = await expect(await ask(target, "POST", `${base}/uploads/`), blob.digest);
  await begun.arrayBuffer();
  const place = new URL(begun.headers.get("location") ?? "", target.url);
  place.searchParams.set("digest", blob.digest);
  const body = new Uint8Array(blob.bytes);
  const headers = { "content-type": "application/octet-stream" };
  await expect(await ask(target, "PUT", place.href, { body, headers }), blob.digest);
};

/** True when the repository has that document under that tag. */
export const hasManifest = async (target: Target, reference: string, digest: string): Promise<boolean> => {
  const accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
  const response = await ask(target, "HEAD", `/v2/${target.repository}/manifests/${reference}`, {
    headers: { accept },
  });
  return response.ok && response.headers.get("docker-content-digest") === digest;
};

/** Uploads a manifest or an index under a tag or its digest. */
export const pushManifest = async (target: Target, reference: string, document: Blob): Promise<void> => {
  const path = `/v2/${target.repository}/manifests/${reference}`;
  const body = new Uint8Array(document.bytes);
  const headers = { "content-type": document.mediaType };
  await expect(await ask(target, "PUT", path, { body, headers }), `${target.repository}:${reference}`);
};
