import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { bundleObjection, isBundle, preAuthEncoding } from "./signature-bundle.ts";

const digest = `sha256:${"a".repeat(64)}`;
const statement = (over: object = {}) =>
  JSON.stringify({
    _type: "https://in-toto.io/Statement/v1",
    subject: [{ digest: { sha256: "a".repeat(64) } }],
    predicateType: "https://sigstore.dev/cosign/sign/v1",
    ...over,
  });
const type = "application/vnd.in-toto+json";

const bundleOf = (privateKey: KeyObject, hash: string | null, payload: string, payloadType = type): string =>
  JSON.stringify({
    mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
    verificationMaterial: { publicKey: { hint: "x" } },
    dsseEnvelope: {
      payload: Buffer.from(payload).toString("base64"),
      payloadType,
      signatures: [
        {
          sig: sign(hash, preAuthEncoding(payloadType, Buffer.from(payload)), privateKey).toString("base64"),
        },
      ],
    },
  });

const p256 = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
const objection = (text: string, keys: KeyObject[] = [p256.publicKey]) =>
  bundleObjection(Buffer.from(text), digest, keys, "any");

test("preAuthEncoding() is DSSE's", () => {
  // The example of its protocol.md.
  expect(preAuthEncoding("http://example.com/HelloWorld", Buffer.from("hello world")).toString()).toBe(
    "DSSEv1 29 http://example.com/HelloWorld 11 hello world",
  );
});

test.each([
  ["ECDSA on P-256", p256, "sha256"],
  ["ECDSA on P-384", generateKeyPairSync("ec", { namedCurve: "secp384r1" }), "sha384"],
  ["RSA", generateKeyPairSync("rsa", { modulusLength: 2048 }), "sha256"],
  ["Ed25519", generateKeyPairSync("ed25519"), null],
] as const)("a bundle by %s is taken by its key alone", (_, { publicKey, privateKey }, hash) => {
  const bundle = bundleOf(privateKey, hash, statement());
  expect(objection(bundle, [publicKey])).toBeUndefined();
  const other = generateKeyPairSync("ec", { namedCurve: "prime256v1" }).publicKey;
  expect(objection(bundle, [other])).toBe("it is by another key");
  expect(objection(bundle, [other, publicKey])).toBeUndefined();
});

test.each([
  ["of another image", statement({ subject: [{ digest: { sha256: "b".repeat(64) } }] }), /another image/],
  [
    "of the same digits by another algorithm",
    statement({ subject: [{ digest: { md5: "a".repeat(64) } }] }),
    /another image/,
  ],
  ["of nothing", statement({ subject: [] }), /no in-toto statement/],
  [
    "that attests a scan",
    statement({ predicateType: "https://cosign.sigstore.dev/attestation/vuln/v1" }),
    /an attestation/,
  ],
  ["of no statement", '{"critical":{}}', /no in-toto statement/],
])("one %s is refused although its key is right", (_, payload, why) => {
  expect(objection(bundleOf(p256.privateKey, "sha256", payload))).toMatch(why);
});

test("what is signed is the payload together with its type", () => {
  const bundle = bundleOf(p256.privateKey, "sha256", statement(), "text/plain");
  expect(objection(bundle)).toMatch(/no in-toto statement/);
  expect(objection(bundle.replace("text/plain", type))).toBe("it is by another key");
});

test("a keyless one is refused in words, and so is one that names no repository where the rule wants it", () => {
  const bundle = bundleOf(p256.privateKey, "sha256", statement());
  expect(objection(bundle.replace('"publicKey"', '"certificate"'))).toMatch(/^it is keyless/);
  expect(bundleObjection(Buffer.from(bundle), digest, [p256.publicKey], "repository")).toMatch(
    /names no repository/,
  );
});

test("isBundle() knows the versions by their names", () => {
  for (const known of [".v0.3+json", "+json;version=0.2"])
    expect(isBundle(`application/vnd.dev.sigstore.bundle${known}`)).toBe(true);
  expect(isBundle("application/vnd.dev.sigstore.bundle.v0.3+json+evil")).toBe(false);
});

test("no text and no change of a bundle is taken that changes what it says", () => {
  fc.assert(
    fc.property(fc.oneof(fc.json(), fc.string()), (text) => {
      expect(objection(text)).toBeTypeOf("string");
    }),
  );
  const bundle = bundleOf(p256.privateKey, "sha256", statement());
  const [from, to] = [bundle.indexOf('"payload":"') + 11, bundle.indexOf('","payloadType"')];
  fc.assert(
    fc.property(fc.nat(), fc.string({ minLength: 1, maxLength: 3 }), (at, instead) => {
      const place = from + (at % (to - from));
      const changed = bundle.slice(0, place) + instead + bundle.slice(place + instead.length);
      const content = (text: string): string =>
        Buffer.from(text.slice(from, text.indexOf('","payloadType"')), "base64").toString("latin1");
      if (content(changed) !== content(bundle)) expect(objection(changed)).toBeTypeOf("string");
    }),
  );
});
