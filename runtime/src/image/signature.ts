import { createPublicKey, type KeyObject, verify } from "node:crypto";
import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { globOf } from "./glob.ts";
import { type Descriptor, parseManifest, sha256 } from "./manifest.ts";
import { nameOf, parseReference, type Reference } from "./reference.ts";
import type { Repository } from "./registry.ts";
import { parseJson } from "./response.ts";
import { bundleObjection, isBundle, keyless } from "./signature-bundle.ts";

/** Who must have signed which images: the first rule that names an image decides, one of its keys suffices. */
export type SignatureRule = {
  /** Globs over REGISTRY/REPOSITORY. */
  images: readonly string[];
  /** Files of public keys in PEM, as of cosign generate-key-pair. None: these images need no signature. */
  keys: readonly string[];
  /** Whether the signature must name the repository that is pulled, or may be of a copy of it. */
  identity: "repository" | "any";
};

/** An image is not signed as the policy wants. The kubelet knows it by the first word of the pull's message. */
export class SignatureError extends RuntimeError {
  constructor(message: string, options?: ErrorOptions) {
    super("unknown", message, options);
  }
}

const payloadType = "application/vnd.dev.cosign.simplesigning.v1+json";
const signatureAnnotation = "dev.cosignproject.cosign/signature";
const certificateAnnotation = "dev.sigstore.cosign/certificate";
const maxKey = 64 << 10;
const maxPayload = 64 << 10;
/** With the proofs of a transparency log. */
const maxBundle = 1 << 20;
const maxSignatures = 100;

/** cosign's payload (containers/image containers-signature.5, "simple signing"). */
const payload = z.object({
  critical: z.object({
    type: z.string(),
    image: z.object({ "docker-manifest-digest": z.string() }),
    identity: z.object({ "docker-reference": z.string() }),
  }),
});

/** The rule for an image, or undefined when none names it. */
export const ruleFor = (rules: readonly SignatureRule[], reference: Reference): SignatureRule | undefined =>
  rules.find(({ images }) => images.some((pattern) => globOf(pattern).test(nameOf(reference))));

/** The public keys of files, and what is wrong with each file that holds none which can verify signatures. */
export const readKeys = async (
  files: readonly string[],
): Promise<{ keys: KeyObject[]; problems: string[] }> => {
  const read = await Promise.all(
    files.map((file) =>
      readKey(file).catch((error: unknown) => `Cannot use the key ${file}: ${messageOf(error)}`),
    ),
  );
  return {
    keys: read.filter((each) => typeof each !== "string"),
    problems: read.filter((each) => typeof each === "string"),
  };
};

const readKey = async (file: string): Promise<KeyObject> => {
  const key = publicKeyIn(await readBounded(file, maxKey));
  if (!["ec", "rsa", "ed25519"].includes(key.asymmetricKeyType ?? ""))
    throw new RuntimeError("invalid-argument", `a key of type ${key.asymmetricKeyType} signs no images`);
  return key;
};

const publicKeyIn = (pem: string): KeyObject => {
  try {
    return createPublicKey(pem);
  } catch (error) {
    throw new RuntimeError("invalid-argument", "it is no public key in PEM", { cause: error });
  }
};

/** True when `signature` is of `bytes` by the key: ECDSA or RSA (PKCS #1 v1.5) over SHA-256, or Ed25519. */
const isSignedBy = (key: KeyObject, bytes: Uint8Array, signature: Uint8Array): boolean => {
  try {
    return verify(key.asymmetricKeyType === "ed25519" ? null : "sha256", bytes, key, signature);
  } catch {
    return false;
  }
};

/** Why a signed payload does not speak for the image; undefined when it does. */
export const objection = (
  bytes: Uint8Array,
  digest: string,
  reference: Reference,
  identity: SignatureRule["identity"],
): string | undefined => {
  const parsed = payload.safeParse(parseJson(bytes));
  if (!parsed.success) return "its payload is not one of cosign";
  const { type, image, identity: named } = parsed.data.critical;
  if (type !== "cosign container image signature")
    return `its payload is of the type ${JSON.stringify(type)}`;
  if (image["docker-manifest-digest"] !== digest) return "it is of another image";
  if (identity === "any") return undefined;
  const claimed = named["docker-reference"];
  try {
    if (nameOf(parseReference(claimed)) === nameOf(reference)) return undefined;
  } catch {
    // No reference is no right one.
  }
  return `it is for ${JSON.stringify(claimed.slice(0, 200))}`;
};

/**
 * Throws a {@link SignatureError} unless the index or the manifest of an image (`digests`) is signed as its rule wants,
 * by one of cosign's schemes: payloads and signatures under the tag sha256-HEX.sig of the same repository, or bundles
 * that refer to the image. A key that cannot be read has signed nothing, and is named when no other key of the rule has.
 */
export const verifySignature = async (
  rule: SignatureRule,
  reference: Reference,
  digests: readonly string[],
  repository: Repository,
  signal: AbortSignal,
): Promise<void> => {
  if (rule.keys.length === 0) return;
  const { keys, problems } = await readKeys(rule.keys);
  if (keys.length === 0) throw new SignatureError(problems.join("; "));
  const objections: string[] = [];
  for (const digest of new Set(digests)) {
    for await (const { bytes, signature, isKeyless } of signaturesOf(digest, repository, signal)) {
      const problem = keys.some((key) => isSignedBy(key, bytes, signature))
        ? objection(bytes, digest, reference, rule.identity)
        : isKeyless
          ? keyless
          : "it is by another key";
      if (problem === undefined) return;
      objections.push(problem);
    }
    for await (const bytes of bundlesOf(digest, repository, signal)) {
      const problem = bundleObjection(bytes, digest, keys, rule.identity);
      if (problem === undefined) return;
      objections.push(problem);
    }
  }
  const found = [...new Set(objections)];
  const objected =
    found.length === 0
      ? `the image is not signed, which ${rule.images.join(", ")} must be`
      : `no signature of the image is valid: ${found.slice(0, 5).join("; ")}`;
  throw new SignatureError([objected, ...problems].join("; "));
};

/** A document that may not be there. */
const orAbsent = async <T>(fetched: Promise<T>): Promise<T | undefined> => {
  try {
    return await fetched;
  } catch (error) {
    if (hasCode(error, "not-found")) return undefined;
    throw error;
  }
};

/** What refers to a manifest, by the registry's own list or by the tag that stands for it (distribution-spec, "Referrers Tag Schema"). */
const referrersOf = async (
  digest: string,
  repository: Repository,
  signal: AbortSignal,
): Promise<Descriptor[]> => {
  const listed = await repository.referrers(digest, signal);
  if (listed !== undefined) return listed;
  const document = await orAbsent(repository.manifest(digest.replace(":", "-"), signal));
  if (document === undefined) return [];
  const parsed = parseManifest(document.bytes, document.contentType);
  return parsed.kind === "index" ? parsed.index.manifests : [];
};

/** Bundles that refer to a manifest. By their manifests: not every client tells the list what kind they are. */
async function* bundlesOf(
  digest: string,
  repository: Repository,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  for (const { digest: referrer } of (await referrersOf(digest, repository, signal)).slice(
    0,
    maxSignatures,
  )) {
    const document = await orAbsent(repository.manifest(referrer, signal));
    const parsed = document && parseManifest(document.bytes, document.contentType);
    const [layer] = parsed?.kind === "manifest" ? parsed.manifest.layers : [];
    if (layer === undefined || !isBundle(layer.mediaType) || layer.size > maxBundle) continue;
    const bytes = await repository.blob(layer, signal);
    if (sha256(bytes) === layer.digest) yield bytes;
  }
}

/** Payloads and signatures of a manifest. What is not of cosign's form is left out. */
async function* signaturesOf(
  digest: string,
  repository: Repository,
  signal: AbortSignal,
): AsyncGenerator<{ bytes: Buffer; signature: Buffer; isKeyless: boolean }> {
  const document = await orAbsent(repository.manifest(`${digest.replace(":", "-")}.sig`, signal));
  if (document === undefined) return;
  const parsed = parseManifest(document.bytes, document.contentType);
  if (parsed.kind !== "manifest") return;
  for (const layer of parsed.manifest.layers.slice(0, maxSignatures)) {
    const text = layer.annotations?.[signatureAnnotation];
    if (layer.mediaType !== payloadType || text === undefined || layer.size > maxPayload) continue;
    const bytes = await repository.blob(layer, signal);
    // The registry client has checked it; this makes it true for every repository.
    if (sha256(bytes) !== layer.digest) continue;
    const isKeyless = layer.annotations?.[certificateAnnotation] !== undefined;
    yield { bytes, signature: Buffer.from(text, "base64"), isKeyless };
  }
}
