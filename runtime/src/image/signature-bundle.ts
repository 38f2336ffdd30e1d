import { constants, type KeyObject, verify } from "node:crypto";
import * as z from "zod";
import { parseJson } from "./response.ts";

/**
 * Sigstore bundles (sigstore/protobuf-specs, bundle.proto, versions 0.1 to 0.3) as `cosign sign --key` writes them since
 * version 3: a DSSE envelope around an in-toto statement whose subject is the image. What they hold of transparency
 * logs is left alone: the policy trusts keys.
 */

/** True for the media type of a bundle, whatever its version. */
export const isBundle = (mediaType: string): boolean =>
  /^application\/vnd\.dev\.sigstore\.bundle(?:\.v0\.\d+\+json|\+json;version=0\.\d+)$/.test(mediaType);

/** Said of signatures by a certificate, of either scheme. */
export const keyless =
  "it is keyless (by a certificate), which is not verified here: sign with a key of the policy";

const base64 = z.string().regex(/^[A-Za-z0-9+/_-]*={0,2}$/, "must be base64");

const Bundle = z.object({
  mediaType: z.string().refine(isBundle),
  verificationMaterial: z.looseObject({ publicKey: z.unknown().optional() }),
  dsseEnvelope: z.object({
    payload: base64,
    payloadType: z.string().max(255),
    signatures: z
      .array(z.object({ sig: base64 }))
      .min(1)
      .max(10),
  }),
});

const Statement = z.object({
  _type: z.enum(["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"]),
  subject: z
    .array(z.object({ digest: z.record(z.string(), z.string()) }))
    .min(1)
    .max(100),
  predicateType: z.string(),
});

const statementType = "application/vnd.in-toto+json";
/** An attestation (of a scan, of contents) is signed by the same keys and is no leave to run. */
const signedByCosign = "https://sigstore.dev/cosign/sign/v1";

/** What DSSE signs: the type and the payload with their lengths (dsse, protocol.md, "PAE"). */
export const preAuthEncoding = (type: string, payload: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(type)} ${type} ${payload.length} `), payload]);

/** Sigstore takes the hash of an elliptic curve by its size. */
const hashesOf: Readonly<Record<string, string>> = { secp384r1: "sha384", secp521r1: "sha512" };

const isSignedBy = (key: KeyObject, bytes: Uint8Array, signature: Uint8Array): boolean => {
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = key;
  const hash = type === "ed25519" ? null : (hashesOf[details?.namedCurve ?? ""] ?? "sha256");
  try {
    const rsa = type === "rsa" ? { padding: constants.RSA_PKCS1_PADDING } : {};
    return verify(hash, bytes, { key, ...rsa }, signature);
  } catch {
    return false;
  }
};

/** Why a bundle does not speak for the image `digest` by one of the keys; undefined when it does. */
export const bundleObjection = (
  bytes: Uint8Array,
  digest: string,
  keys: readonly KeyObject[],
  identity: "repository" | "any",
): string | undefined => {
  const parsed = Bundle.safeParse(parseJson(bytes));
  if (!parsed.success) return "it is no Sigstore bundle with a DSSE envelope";
  const { verificationMaterial, dsseEnvelope } = parsed.data;
  if (verificationMaterial.publicKey === undefined) return keyless;
  const { payload, payloadType, signatures } = dsseEnvelope;
  const content = Buffer.from(payload, "base64");
  const signed = preAuthEncoding(payloadType, content);
  const isValid = signatures.some(({ sig }) =>
    keys.some((key) => isSignedBy(key, signed, Buffer.from(sig, "base64"))),
  );
  if (!isValid) return "it is by another key";
  const statement = Statement.safeParse(parseJson(content));
  if (payloadType !== statementType || !statement.success) return "its content is no in-toto statement";
  const { predicateType, subject } = statement.data;
  if (predicateType !== signedByCosign)
    return `it is an attestation (${JSON.stringify(predicateType.slice(0, 200))}), not a signature`;
  const [algorithm = "", hex = ""] = digest.split(":");
  if (!subject.some((each) => Object.hasOwn(each.digest, algorithm) && each.digest[algorithm] === hex))
    return "it is of another image";
  if (identity === "repository")
    return 'it is a bundle, which names no repository: with the rule\'s "identity: any" it counts';
  return undefined;
};
