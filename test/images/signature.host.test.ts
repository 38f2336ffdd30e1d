import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { inCache } from "../tools/cache.ts";
import { run } from "../tools/run.ts";
import { mediaTypes } from "./image.ts";
import { startProxy } from "./proxy.ts";
import { blobOf, descriptorOf, pushBlob, pushManifest } from "./push.ts";
import { gzipLayer, never, push, text, useStore } from "./store-fixture.ts";

const use = useStore();
let keys: { own: string; ownPublic: string; other: string };

beforeAll(async () => {
  const make = async (name: string): Promise<string> => {
    const file = join(use.scratch, name);
    await run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", file]);
    return file;
  };
  const own = await make("own.key");
  const ownPublic = join(use.scratch, "own.pub");
  await run(["openssl", "ec", "-in", own, "-pubout", "-out", ownPublic]);
  keys = { own, ownPublic, other: await make("other.key") };
});

/** Signs as cosign does, by openssl: ECDSA over the payload of simple signing, under the tag sha256-HEX.sig. */
const sign = async (
  repository: string,
  digest: string,
  key: string,
  claims: { repository?: string; digest?: string } = {},
) => {
  const target = { url: use.registry.url, repository };
  const payload = blobOf(
    "application/vnd.dev.cosign.simplesigning.v1+json",
    Buffer.from(
      JSON.stringify({
        critical: {
          identity: { "docker-reference": claims.repository ?? `${use.registry.host}/${repository}` },
          image: { "docker-manifest-digest": claims.digest ?? digest },
          type: "cosign container image signature",
        },
        optional: null,
      }),
    ),
  );
  const signature = execFileSync("openssl", ["dgst", "-sha256", "-sign", key], { input: payload.bytes });
  const config = blobOf(mediaTypes.config, {
    architecture: "",
    os: "",
    rootfs: { type: "layers", diff_ids: [] },
  });
  for (const blob of [payload, config]) await pushBlob(target, blob);
  const manifest = blobOf(mediaTypes.manifest, {
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    config: descriptorOf(config),
    layers: [
      {
        ...descriptorOf(payload),
        annotations: { "dev.cosignproject.cosign/signature": signature.toString("base64") },
      },
    ],
  });
  await pushManifest(target, `${digest.replace(":", "-")}.sig`, manifest);
};

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json";
type Claims = { digest?: string; predicateType?: string; material?: object };

/** A Sigstore bundle that refers to the image, as cosign 3 makes it, signed by openssl. Returns the referring manifest. */
const signByBundle = async (repository: string, digest: string, key: string, claims: Claims = {}) => {
  const target = { url: use.registry.url, repository };
  const payload = Buffer.from(
    JSON.stringify({
      _type: "https://in-toto.io/Statement/v1",
      subject: [{ digest: { sha256: (claims.digest ?? digest).slice(7) } }],
      predicateType: claims.predicateType ?? "https://sigstore.dev/cosign/sign/v1",
    }),
  );
  const payloadType = "application/vnd.in-toto+json";
  const signed = Buffer.concat([
    Buffer.from(`DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} `),
    payload,
  ]);
  const sig = execFileSync("openssl", ["dgst", "-sha256", "-sign", key], { input: signed });
  const bundle = blobOf(bundleType, {
    mediaType: bundleType,
    verificationMaterial: claims.material ?? { publicKey: { hint: "" } },
    dsseEnvelope: {
      payload: payload.toString("base64"),
      payloadType,
      signatures: [{ sig: sig.toString("base64") }],
    },
  });
  const empty = blobOf("application/vnd.oci.empty.v1+json", Buffer.from("{}"));
  for (const blob of [bundle, empty]) await pushBlob(target, blob);
  const manifest = blobOf(mediaTypes.manifest, {
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    artifactType: bundleType,
    config: descriptorOf(empty),
    layers: [descriptorOf(bundle)],
    subject: { mediaType: mediaTypes.manifest, digest, size: 1 },
  });
  await pushManifest(target, manifest.digest, manifest);
  return manifest;
};

const indexOf = (...manifests: { mediaType: string; digest: string; bytes: Uint8Array }[]) =>
  blobOf("application/vnd.oci.image.index.v1+json", {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: manifests.map(descriptorOf),
  });

describe("Image signature policy", () => {
  const pushed = async (repository: string) => {
    const layer = gzipLayer(text("signed", repository));
    const { manifest } = await push({ url: use.registry.url, repository }, "1", [layer]);
    return { digest: manifest.digest, layer, ref: `${use.registry.host}/${repository}:1` };
  };
  const withPolicy = (identity: "repository" | "any" = "repository") =>
    use.reopen({
      signatures: [
        { images: [`${use.registry.host}/prod/free/*`], keys: [], identity },
        { images: [`${use.registry.host}/prod/**`], keys: [keys.ownPublic], identity },
      ],
    });
  const refused = async (ref: string, layer: { diffId: string }, why: RegExp) => {
    await expect(use.images.pull({ ref }, never)).rejects.toMatchObject({
      code: "unknown",
      message: expect.stringMatching(
        new RegExp(`^SignatureValidationFailed: Cannot pull image .*${why.source}`),
      ),
    });
    expect(use.snapshotter.has(layer.diffId)).toBe(false);
    expect(use.images.list()).toEqual([]);
  };

  test("takes what the right key signed, and what no rule or an exception names", async () => {
    await withPolicy();
    const { digest, ref } = await pushed("prod/signed");
    await sign("prod/signed", digest, keys.own);
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    for (const name of ["dev/unsigned", "prod/free/one"]) {
      const { ref } = await pushed(name);
      expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    }
  });

  test("refuses before anything is unpacked: unsigned, of another key, image or repository, or changed", async () => {
    await withPolicy();
    const cases: [string, RegExp, (name: string, digest: string) => Promise<void>][] = [
      ["prod/unsigned", /the image is not signed/, async () => {}],
      ["prod/other-key", /it is by another key/, (name, digest) => sign(name, digest, keys.other)],
      [
        "prod/other-image",
        /it is of another image/,
        (name, digest) => sign(name, digest, keys.own, { digest: `sha256:${"0".repeat(64)}` }),
      ],
      [
        "prod/other-repository",
        /it is for ".*prod.signed"/,
        (name, digest) => sign(name, digest, keys.own, { repository: `${use.registry.host}/prod/signed` }),
      ],
    ];
    for (const [name, why, how] of cases) {
      const { digest, layer, ref } = await pushed(name);
      await how(name, digest);
      await refused(ref, layer, why);
    }
    await withPolicy("any");
    const ref = `${use.registry.host}/prod/other-repository:1`;
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
  });

  test("takes a bundle by the referrers' tag; of another key, image or kind, or keyless, it is refused in words", async () => {
    const cases: [string, RegExp, string, Claims][] = [
      ["bundle-key", /it is by another key/, keys.other, {}],
      ["bundle-image", /it is of another image/, keys.own, { digest: `sha256:${"0".repeat(64)}` }],
      [
        "bundle-attestation",
        /it is an attestation \("https:..slsa.dev.*"\), not a signature/,
        keys.own,
        { predicateType: "https://slsa.dev/provenance/v1" },
      ],
      [
        "bundle-keyless",
        /it is keyless \(by a certificate\), which is not verified here/,
        keys.own,
        { material: { certificate: { rawBytes: "" } } },
      ],
    ];
    await withPolicy("any");
    for (const [name, why, key, claims] of cases) {
      const { digest, layer, ref } = await pushed(`prod/${name}`);
      const manifest = await signByBundle(`prod/${name}`, digest, key, claims);
      const target = { url: use.registry.url, repository: `prod/${name}` };
      await pushManifest(target, digest.replace(":", "-"), indexOf(manifest));
      await refused(ref, layer, why);
    }
    const { digest, layer, ref } = await pushed("prod/bundle");
    const target = { url: use.registry.url, repository: "prod/bundle" };
    const [wrong, right] = [
      await signByBundle("prod/bundle", digest, keys.other),
      await signByBundle("prod/bundle", digest, keys.own),
    ];
    await pushManifest(target, digest.replace(":", "-"), indexOf(wrong, right));
    await withPolicy("repository");
    await refused(
      ref,
      layer,
      /a bundle, which names no repository: with the rule's "identity: any" it counts/,
    );
    await withPolicy("any");
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
  });

  test("takes a bundle by the registry's own list of referrers, page by page", async () => {
    const { digest } = await pushed("prod/listed");
    const [wrong, right] = [
      await signByBundle("prod/listed", digest, keys.other),
      await signByBundle("prod/listed", digest, keys.own),
    ];
    // A fake: Debian's registry has no such list.
    await using proxy = await startProxy(use.registry.url);
    proxy.intercept = ({ path }, response) => {
      const url = new URL(path, proxy.url);
      if (url.pathname !== `/v2/prod/listed/referrers/${digest}`) return false;
      const isFirst = url.searchParams.get("n") !== "2";
      response.writeHead(200, {
        "content-type": "application/vnd.oci.image.index.v1+json",
        ...(isFirst && { link: `<${proxy.url}/v2/elsewhere?n=2>; rel="next"` }),
      });
      response.end(indexOf(isFirst ? wrong : right).bytes);
      return true;
    };
    await use.reopen({
      signatures: [{ images: ["**"], keys: [keys.ownPublic], identity: "any" }],
    });
    const ref = `${proxy.host}/prod/listed:1`;
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    expect(proxy.seen.filter(({ path }) => path.includes("/referrers/"))).toHaveLength(2);
  });

  test("a key that cannot be read refuses what needs it, by name, until it can be read", async () => {
    const [file, fifo] = [join(use.root, "late.pub"), join(use.root, "fifo.pub")];
    await writeFile(file, "no key");
    await run(["mkfifo", fifo]);
    const warnings: unknown[] = [];
    const warn = (...told: unknown[]): void => void warnings.push(told);
    const identity = "any" as const;
    const under = (name: string): string[] => [`${use.registry.host}/${name}/**`];
    await use.reopen({
      signatures: [
        { images: under("late"), keys: [file], identity },
        { images: under("either"), keys: [fifo, keys.ownPublic], identity },
      ],
      log: { debug: () => {}, info: () => {}, warn },
    });
    const wrong = `Cannot use the key ${file}: it is no public key in PEM`;
    const told = [wrong, `Cannot use the key ${fifo}: not a regular file`];
    expect(warnings).toEqual(told.map((reason) => [{ reason }, "images that need this key are refused"]));

    const { digest, layer, ref } = await pushed("late/one");
    await sign("late/one", digest, keys.own);
    await refused(ref, layer, new RegExp(wrong));
    const either = await pushed("either/one");
    await sign("either/one", either.digest, keys.other);
    await refused(either.ref, either.layer, /it is by another key; Cannot use the key .*fifo.pub/);
    await sign("either/one", either.digest, keys.own);
    const elsewhere = await pushed("free/one");
    for (const { ref } of [either, elsewhere])
      expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);

    await writeFile(file, await readFile(keys.ownPublic));
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    await rm(file);
    await use.reopen({ signatures: [{ images: under("late"), keys: [file], identity }] });
    await expect(use.images.pull({ ref }, never)).rejects.toThrow(/^SignatureValidationFailed.*ENOENT/);
  });

  const cosign = inCache("bin", "cosign");
  test.runIf(existsSync(cosign)).each([
    ["its tag", false, "repository"],
    // What cosign 3 does unasked, cosign 2 does when it is told to.
    ["a bundle", true, "any"],
  ] as const)(
    `takes what cosign itself signed by %s${existsSync(cosign) ? "" : " (skipped: ./dev tools makes cosign)"}`,
    async (_, isBundle, identity) => {
      const repository = `prod/by-cosign-${isBundle ? "bundle" : "tag"}`;
      const { digest, ref } = await pushed(repository);
      const env = { COSIGN_PASSWORD: "x", HOME: use.root };
      const own = { cwd: use.root, env };
      await run([cosign, "generate-key-pair"], own);
      await use.reopen({
        signatures: [{ images: [`${use.registry.host}/**`], keys: [join(use.root, "cosign.pub")], identity }],
      });
      expect(await readFile(join(use.root, "cosign.pub"), "utf8")).toMatch(/PUBLIC KEY/);
      await expect(use.images.pull({ ref }, never)).rejects.toThrow(/^SignatureValidationFailed/);
      const image = `${use.registry.host}/${repository}@${digest}`;
      const flags = ["--yes", "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry"];
      const format = `--new-bundle-format=${isBundle}`;
      await run([cosign, "sign", ...flags, format, "--key", join(use.root, "cosign.key"), image], own);
      expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    },
  );
});
