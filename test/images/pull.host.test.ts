import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzipSync, zstdCompress } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { type ImageStore, type ImagesOptions, openImages } from "../../runtime/src/image/store.ts";
import { createLinux } from "../../runtime/src/linux/linux-ffi.ts";
import { overlay } from "../../runtime/src/snapshot/overlay.ts";
import type { Snapshotter } from "../../runtime/src/snapshot/snapshotter.ts";
import { run } from "../tools/run.ts";
import { type BuiltImage, pushImage } from "./build.ts";
import { imageOf, type Layer, mediaTypes } from "./image.ts";
import { startProxy } from "./proxy.ts";
import { blobOf, descriptorOf, digestOf, pushBlob, pushManifest } from "./push.ts";
import { type RunningRegistry, startRegistry } from "./registry.ts";
import { type Entry, tarOf } from "./tar.ts";

const log = { debug: () => {}, info: () => {}, warn: () => {} };
const never = new AbortController().signal;
const text = (path: string, data: string | Uint8Array): Entry => ({ type: "file", path, data });

const gzipLayer = (...entries: Entry[]): Layer => {
  const tar = tarOf(entries);
  return { diffId: digestOf(tar), blob: blobOf(mediaTypes.gzip, gzipSync(tar)) };
};
const built = (name: string, layers: Layer[], config?: Parameters<typeof imageOf>[1]): BuiltImage => ({
  names: [name],
  layers,
  ...imageOf(layers, config),
});

let scratch: string;
let registry: RunningRegistry;
/** The store of the test at hand, on the real overlay snapshotter. */
let images: ImageStore;
let snapshotter: Snapshotter & AsyncDisposable;
let root: string;

const open = (options: Partial<ImagesOptions> = {}): Promise<ImageStore> =>
  openImages({ root: join(root, "images"), snapshotter, mirrors: {}, log, ...options });

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-images-"));
  registry = await startRegistry({ dir: join(scratch, "registry") });
});
afterAll(async () => {
  await registry.stop();
  await rm(scratch, { recursive: true, force: true });
});
beforeEach(async () => {
  root = await mkdtemp(join(scratch, "root-"));
  snapshotter = await overlay(join(root, "layers"), createLinux());
  images = await open();
});
afterEach(async () => {
  await images[Symbol.asyncDispose]();
  await snapshotter[Symbol.asyncDispose]();
});

/** Reads a file of an image through a read-only mount of its layers. */
const readInside = async (layers: string[], path: string): Promise<string> => {
  const key = `read-${randomBytes(4).toString("hex")}`;
  const target = join(root, key);
  await mkdir(target);
  await snapshotter.mountReadonly(key, layers, target);
  try {
    return await readFile(join(target, path), "utf8");
  } finally {
    await snapshotter.unmount(target);
    await snapshotter.removeContainer(key);
  }
};

const stagedFiles = () => readdir(join(root, "images", "staging"));
const keptBlobs = () => readdir(join(root, "images", "blobs", "sha256"));

describe("A pull from a real registry", () => {
  test("takes the image of this platform out of an index and unpacks its layers in order", async () => {
    const target = { url: registry.url, repository: "case/index" };
    const layers = [gzipLayer(text("who", "base"), text("base", "yes")), gzipLayer(text("who", "top"))];
    const mine = built("case/index:mine", layers, { User: "www-data:4", Cmd: ["sh"], Env: ["A=b"] });
    await pushImage(registry.url, mine);
    const other = blobOf(mediaTypes.manifest, JSON.parse(Buffer.from(mine.manifest.bytes).toString()));
    const index = blobOf(mediaTypes.index, {
      schemaVersion: 2,
      mediaType: mediaTypes.index,
      manifests: [
        { ...descriptorOf(other), platform: { os: "windows", architecture: "amd64" } },
        {
          ...descriptorOf(mine.manifest),
          platform: { os: "linux", architecture: process.arch === "x64" ? "amd64" : process.arch },
        },
      ],
    });
    await pushManifest(target, other.digest, other);
    await pushManifest(target, "latest", index);

    const image = await images.pull({ ref: `${registry.host}/case/index` }, never);

    expect(image).toMatchObject({
      id: mine.config.digest,
      repoTags: [`${registry.host}/case/index:latest`],
      repoDigests: [`${registry.host}/case/index@${index.digest}`],
      user: { username: "www-data" },
      config: { cmd: ["sh"], env: ["A=b"], user: "www-data:4" },
    });
    expect(image.size).toBe(
      layers.reduce((sum, { blob }) => sum + blob.bytes.length, mine.config.bytes.length),
    );
    expect(await readInside(image.layers, "who")).toBe("top");
    expect(await readInside(image.layers, "base")).toBe("yes");
    expect(await stagedFiles()).toEqual([]);
  });

  test("reads layers in zstd and without compression", async () => {
    const first = tarOf([text("zstd", "z")]);
    const second = tarOf([text("plain", "p")]);
    const layers = [
      { diffId: digestOf(first), blob: blobOf(mediaTypes.zstd, await promisify(zstdCompress)(first)) },
      { diffId: digestOf(second), blob: blobOf(mediaTypes.tar, second) },
    ];
    await pushImage(registry.url, built("case/formats:1", layers));
    const image = await images.pull({ ref: `${registry.host}/case/formats:1` }, never);
    expect(await readInside(image.layers, "zstd")).toBe("z");
    expect(await readInside(image.layers, "plain")).toBe("p");
  });

  test("by digest gives the image no tag, and every kind of reference finds it", async () => {
    const image = built("case/names:1", [gzipLayer(text("n", "n"))]);
    await pushImage(registry.url, image);
    const name = `${registry.host}/case/names`;
    const pulled = await images.pull({ ref: `${name}@${image.manifest.digest}` }, never);
    expect(pulled).toMatchObject({ repoTags: [], repoDigests: [`${name}@${image.manifest.digest}`] });

    await images.pull({ ref: `${name}:1` }, never);
    const hex = pulled.id.slice("sha256:".length);
    for (const ref of [pulled.id, hex, hex.slice(0, 13), `${name}:1`, `${name}@${image.manifest.digest}`]) {
      expect(images.get(ref)?.id, ref).toBe(pulled.id);
    }
    for (const ref of [hex.slice(0, 11), `${name}:2`, name, "sha256:", "", "No such!"]) {
      expect(images.get(ref), ref).toBeUndefined();
    }
    expect(images.list()).toHaveLength(1);
  });

  test("moves a tag to the image that has it now", async () => {
    const ref = `${registry.host}/case/moves:1`;
    await pushImage(registry.url, built("case/moves:1", [gzipLayer(text("v", "1"))]));
    const old = await images.pull({ ref }, never);
    await pushImage(registry.url, built("case/moves:1", [gzipLayer(text("v", "2"))]));
    const fresh = await images.pull({ ref }, never);
    expect(images.get(ref)?.id).toBe(fresh.id);
    expect(images.get(old.id)).toMatchObject({ repoTags: [], repoDigests: old.repoDigests });
  });

  test("goes to the mirrors of a registry and keeps the names as they were asked for", async () => {
    const image = built("e2e/mirrored:1", [gzipLayer(text("m", "m"))]);
    await pushImage(registry.url, image);
    await using dead = await startProxy(registry.url);
    dead.intercept = (_, response) => Boolean(response.writeHead(404).end());
    await images[Symbol.asyncDispose]();
    images = await open({ mirrors: { "registry.k8s.io": [dead.url, registry.url] } });
    const pulled = await images.pull({ ref: "registry.k8s.io/e2e/mirrored:1" }, never);
    expect(pulled.repoTags).toEqual(["registry.k8s.io/e2e/mirrored:1"]);
    expect(pulled.repoDigests).toEqual([`registry.k8s.io/e2e/mirrored@${image.manifest.digest}`]);
    expect(dead.seen.length).toBeGreaterThan(0);
  });

  test("pushed by skopeo in Docker's own format works the same", async () => {
    await pushImage(registry.url, built("case/oci:1", [gzipLayer(text("d", "docker"))]));
    const from = `docker://${registry.host}/case/oci:1`;
    const to = `docker://${registry.host}/case/docker:1`;
    const insecure = ["--src-tls-verify=false", "--dest-tls-verify=false", "--insecure-policy"];
    await run(["skopeo", "copy", "-q", "--format", "v2s2", ...insecure, from, to]);
    const image = await images.pull({ ref: `${registry.host}/case/docker:1` }, never);
    expect(await readInside(image.layers, "d")).toBe("docker");
  });
});

describe("A pull that cannot be right leaves no image and no layer", () => {
  const nothingLeft = async (layers: readonly Layer[]): Promise<void> => {
    expect(images.list()).toEqual([]);
    expect(await stagedFiles()).toEqual([]);
    for (const { diffId } of layers) expect(snapshotter.has(diffId)).toBe(false);
  };

  test("when a layer's bytes are not those of its digest", async () => {
    const layer = gzipLayer(text("evil", randomBytes(2000)));
    await pushImage(registry.url, built("case/tampered:1", [layer]));
    const hex = layer.blob.digest.slice("sha256:".length);
    const stored = join(
      scratch,
      "registry/content/docker/registry/v2/blobs/sha256",
      hex.slice(0, 2),
      hex,
      "data",
    );
    const bytes = await readFile(stored);
    bytes[bytes.length - 20]! ^= 1;
    await writeFile(stored, bytes);
    await expect(images.pull({ ref: `${registry.host}/case/tampered:1` }, never)).rejects.toMatchObject({
      code: "failed-precondition",
      message: expect.stringMatching(/^Cannot pull image ".*": blob .* does not have the digest/),
    });
    await nothingLeft([layer]);
  });

  test("when a layer's content is not that of its diff ID", async () => {
    const honest = gzipLayer(text("a", "a"));
    const lying = { ...honest, diffId: digestOf(Buffer.from("something else")) };
    await pushImage(registry.url, built("case/diff:1", [lying]));
    await expect(images.pull({ ref: `${registry.host}/case/diff:1` }, never)).rejects.toMatchObject({
      code: "failed-precondition",
      message: expect.stringContaining(`its image says ${lying.diffId}`),
    });
    await nothingLeft([honest, lying]);
  });

  test("when a layer is longer than its manifest says", async () => {
    const layer = gzipLayer(text("long", randomBytes(5000)));
    const target = { url: registry.url, repository: "case/long" };
    const { config } = imageOf([layer]);
    await pushBlob(target, layer.blob);
    await pushBlob(target, config);
    const manifest = blobOf(mediaTypes.manifest, {
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      config: descriptorOf(config),
      layers: [{ ...descriptorOf(layer.blob), size: 100 }],
    });
    await pushManifest(target, "1", manifest);
    await expect(images.pull({ ref: `${registry.host}/case/long:1` }, never)).rejects.toThrow(
      /more than its 100 bytes/,
    );
    await nothingLeft([layer]);
  });

  test("when its USER overflows into another user", async () => {
    await pushImage(registry.url, built("case/user:1", [gzipLayer(text("u", "u"))], { User: "4294967296" }));
    await expect(images.pull({ ref: `${registry.host}/case/user:1` }, never)).rejects.toThrow(
      /not an ID of 31 bits/,
    );
    await nothingLeft([]);
  });

  test("when the daemon stops in the middle of a layer", async () => {
    const layer = gzipLayer(text("slow", randomBytes(1 << 20)));
    await pushImage(registry.url, built("case/abort:1", [layer]));
    await using proxy = await startProxy(registry.url);
    const quit = new AbortController();
    proxy.intercept = ({ path }, response) => {
      if (!path.endsWith(layer.blob.digest)) return false;
      response.writeHead(200, { "content-length": layer.blob.bytes.length });
      response.write(layer.blob.bytes.subarray(0, 1000), () => quit.abort());
      return true;
    };
    await expect(images.pull({ ref: `${proxy.host}/case/abort:1` }, quit.signal)).rejects.toMatchObject({
      code: "cancelled",
    });
    // The pull goes on for whoever tries again; it ends with the daemon.
    await images[Symbol.asyncDispose]();
    await nothingLeft([layer]);
  });
});

describe("What the user is told", () => {
  test("of an image that does not exist: not-found", async () => {
    const ref = `${registry.host}/case/none:1`;
    await expect(images.pull({ ref }, never)).rejects.toMatchObject({
      code: "not-found",
      message: expect.stringMatching(new RegExp(`^Cannot pull image "${ref}": .*404.*manifest unknown`)),
    });
  });

  test("of a registry that is down: RegistryUnavailable, which the kubelet knows by its first word", async () => {
    const gone = await startProxy(registry.url);
    await gone[Symbol.asyncDispose]();
    await expect(images.pull({ ref: `${gone.host}/a/b:1` }, never)).rejects.toMatchObject({
      code: "unknown",
      message: expect.stringMatching(/^RegistryUnavailable: Cannot pull image ".*": .*ECONNREFUSED/),
    });
  });

  test("of a reference that is none: invalid-argument", async () => {
    await expect(images.pull({ ref: "upper/CASE" }, never)).rejects.toMatchObject({
      code: "invalid-argument",
    });
  });
});

describe("Authentication", () => {
  let closed: RunningRegistry;
  const user = { username: "walled", password: "open sesame" };
  const basic = `Basic ${Buffer.from(`${user.username}:${user.password}`).toString("base64")}`;

  beforeAll(async () => {
    const dir = join(scratch, "closed");
    await mkdir(dir);
    const htpasswd = join(dir, "htpasswd");
    await writeFile(htpasswd, "walled:$2y$04$5AhJo.lRtKUvy4y4BjD6eeR7aYUfUL9kH016.kmJYKptudCQJZ.LK\n");
    closed = await startRegistry({ dir, htpasswd });
    const target = { url: closed.url, repository: "private/image", authorization: basic };
    const layer = gzipLayer(text("s", "secret"));
    const { config, manifest } = imageOf([layer]);
    for (const blob of [layer.blob, config]) await pushBlob(target, blob);
    await pushManifest(target, "1", manifest);
  });
  afterAll(async () => {
    await closed.stop();
  });

  test("by password, in both forms that the CRI has", async () => {
    const ref = `${closed.host}/private/image:1`;
    expect((await images.pull({ ref, auth: user }, never)).repoTags).toEqual([ref]);
    const auth = Buffer.from(`${user.username}:${user.password}`).toString("base64");
    expect((await images.pull({ ref, auth: { auth } }, never)).repoTags).toEqual([ref]);
  });

  test("is needed again by who comes after somebody that had it", async () => {
    const ref = `${closed.host}/private/image:1`;
    await images.pull({ ref, auth: user }, never);
    for (const auth of [undefined, { ...user, password: "wrong" }]) {
      await expect(images.pull(auth === undefined ? { ref } : { ref, auth }, never)).rejects.toMatchObject({
        code: "permission-denied",
      });
    }
  });

  test("is not shown to a mirror that it was not given for", async () => {
    await using mirror = await startProxy(registry.url);
    await images[Symbol.asyncDispose]();
    images = await open({ mirrors: { [closed.host]: [mirror.url, closed.url] } });
    await images.pull({ ref: `${closed.host}/private/image:1`, auth: user }, never);
    expect(mirror.seen.length).toBeGreaterThan(0);
    expect(mirror.seen.map(({ authorization }) => authorization)).toEqual(mirror.seen.map(() => undefined));
  });

  test("by token: one is fetched for the repository and used for all its blobs", async () => {
    await pushImage(
      registry.url,
      built("case/token:1", [gzipLayer(text("t", "1")), gzipLayer(text("t", "2"))]),
    );
    await using proxy = await startProxy(registry.url);
    proxy.intercept = ({ path, authorization }, response) => {
      if (path.startsWith("/token?")) {
        response.writeHead(authorization === basic ? 200 : 401);
        response.end(JSON.stringify({ token: "the-token", expires_in: 300 }));
        return true;
      }
      if (authorization === "Bearer the-token") return false;
      const challenge = `Bearer realm="${proxy.url}/token",service="test",scope="repository:case/token:pull"`;
      response.writeHead(401, { "www-authenticate": challenge }).end();
      return true;
    };
    await images.pull({ ref: `${proxy.host}/case/token:1`, auth: user }, never);
    const asked = proxy.seen.filter(({ path }) => path.startsWith("/token?"));
    expect(asked).toHaveLength(1);
    expect(new URL(asked[0]!.path, proxy.url).searchParams.get("scope")).toBe("repository:case/token:pull");
  });

  test("stays behind when a blob is somewhere else", async () => {
    await pushImage(registry.url, built("case/redirect:1", [gzipLayer(text("r", "r"))]));
    await using elsewhere = await startProxy(registry.url);
    await using proxy = await startProxy(registry.url);
    proxy.intercept = ({ path, authorization }, response) => {
      if (authorization !== basic) {
        response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
        return true;
      }
      if (!path.includes("/blobs/")) return false;
      response.writeHead(307, { location: `${elsewhere.url}${path}` }).end();
      return true;
    };
    await images.pull({ ref: `${proxy.host}/case/redirect:1`, auth: user }, never);
    expect(elsewhere.seen.map(({ authorization }) => authorization)).toEqual([undefined, undefined]);
  });
});

describe("TLS", () => {
  test("trusts the authority in the registry's folder of certificates, and no other", async () => {
    await pushImage(registry.url, built("case/tls:1", [gzipLayer(text("t", "tls"))]));
    const [key, cert] = [join(root, "key.pem"), join(root, "cert.pem")];
    const made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry"];
    await run([
      "openssl",
      "req",
      ...made,
      "-addext",
      "subjectAltName=IP:127.0.0.1",
      "-keyout",
      key,
      "-out",
      cert,
    ]);
    const tls = { key: await readFile(key, "utf8"), cert: await readFile(cert, "utf8") };
    await using proxy = await startProxy(registry.url, tls);
    const ref = `${proxy.host}/case/tls:1`;
    const mirrors = { [proxy.host]: [proxy.url] };
    await images[Symbol.asyncDispose]();
    images = await open({ mirrors });
    await expect(images.pull({ ref }, never)).rejects.toThrow(
      /^RegistryUnavailable: .*self-signed certificate/,
    );
    const certsDir = join(root, "certs.d");
    await mkdir(join(certsDir, proxy.host), { recursive: true });
    await writeFile(join(certsDir, proxy.host, "ca.crt"), tls.cert);
    await images[Symbol.asyncDispose]();
    images = await open({ mirrors, certsDir });
    expect((await images.pull({ ref }, never)).repoTags).toEqual([ref]);
  });
});

describe("A registry that stumbles", () => {
  test("is asked again after the pause that it wants", async () => {
    await pushImage(registry.url, built("case/busy:1", [gzipLayer(text("b", "b"))]));
    await using proxy = await startProxy(registry.url);
    let refused = 0;
    proxy.intercept = (_, response) =>
      refused++ === 0 && Boolean(response.writeHead(429, { "retry-after": "1" }).end());
    const began = performance.now();
    await images.pull({ ref: `${proxy.host}/case/busy:1` }, never);
    expect(performance.now() - began).toBeGreaterThan(990);
  });

  test.each([
    ["503", (response: ServerResponse) => response.writeHead(503).end()],
    ["a cut connection", (response: ServerResponse) => response.destroy()],
  ])("is asked four times, and no more, when all it has is %s", async (_, answer) => {
    await using proxy = await startProxy(registry.url);
    proxy.intercept = (_seen, response) => Boolean(answer(response));
    await expect(images.pull({ ref: `${proxy.host}/case/gone:1` }, never)).rejects.toThrow(
      "RegistryUnavailable",
    );
    expect(proxy.seen.length).toBe(4);
  });

  test("goes on where a broken connection left off", async () => {
    const layer = gzipLayer(text("big", randomBytes(1 << 20)));
    await pushImage(registry.url, built("case/broken:1", [layer]));
    await using proxy = await startProxy(registry.url);
    let broken = 0;
    proxy.intercept = ({ path }, response) => {
      if (!path.endsWith(layer.blob.digest) || broken++ > 0) return false;
      response.writeHead(200, { "content-length": layer.blob.bytes.length });
      response.write(layer.blob.bytes.subarray(0, 500_000), () => setTimeout(() => response.destroy(), 50));
      return true;
    };
    await images.pull({ ref: `${proxy.host}/case/broken:1` }, never);
    const fetched = proxy.seen.filter(({ path }) => path.endsWith(layer.blob.digest));
    expect(fetched.map(({ range }) => range)).toEqual([undefined, "bytes=500000-"]);
  });
});

describe("Pulls at the same time", () => {
  test("of images that share layers fetch each layer once", async () => {
    const shared = gzipLayer(text("shared", randomBytes(200_000)));
    const names = ["a", "b", "c"];
    for (const name of names) {
      await pushImage(registry.url, built(`case/${name}:1`, [shared, gzipLayer(text("own", name))]));
    }
    await using proxy = await startProxy(registry.url);
    const pulls = [...names, ...names].map((name) =>
      images.pull({ ref: `${proxy.host}/case/${name}:1` }, never),
    );
    const pulled = await Promise.all(pulls);
    expect(new Set(pulled.map(({ id }) => id)).size).toBe(3);
    expect(proxy.seen.filter(({ path }) => path.endsWith(shared.blob.digest))).toHaveLength(1);
  });

  test("go on for the others when one gives up", async () => {
    const layer = gzipLayer(text("wanted", randomBytes(100_000)));
    await pushImage(registry.url, built("case/leave:1", [layer]));
    await using proxy = await startProxy(registry.url);
    const begun = Promise.withResolvers<void>();
    const proceed = Promise.withResolvers<void>();
    proxy.intercept = ({ path }, _, forward) => {
      if (!path.endsWith(layer.blob.digest)) return false;
      begun.resolve();
      void proceed.promise.then(forward);
      return true;
    };
    const quit = new AbortController();
    const ref = `${proxy.host}/case/leave:1`;
    const first = images.pull({ ref }, quit.signal);
    await begun.promise;
    const second = images.pull({ ref }, never);
    await new Promise((resolve) => setTimeout(resolve, 100));
    quit.abort();
    await expect(first).rejects.toMatchObject({ code: "cancelled" });
    proceed.resolve();
    expect((await second).repoTags).toEqual([ref]);
    expect(proxy.seen.filter(({ path }) => path.endsWith(layer.blob.digest))).toHaveLength(1);
  });
});

describe("Removing an image", () => {
  const two = async () => {
    const shared = gzipLayer(text("shared", "s"));
    const refs = ["left", "right"].map((name) => `${registry.host}/case/${name}:1`);
    await pushImage(registry.url, built("case/left:1", [shared, gzipLayer(text("own", "left"))]));
    await pushImage(registry.url, built("case/right:1", [shared, gzipLayer(text("own", "right"))]));
    return await Promise.all(refs.map((ref) => images.pull({ ref }, never)));
  };

  test("takes all its names, its documents and the layers that no other image has", async () => {
    const [left, right] = await two();
    await images.pull({ ref: `${left!.repoDigests[0]}` }, never);
    await images.remove(left!.repoTags[0]!, never);
    for (const ref of [left!.id, ...left!.repoTags, ...left!.repoDigests])
      expect(images.get(ref)).toBeUndefined();
    expect(snapshotter.has(left!.layers[1]!)).toBe(false);
    expect(await readInside(right!.layers, "shared")).toBe("s");
    expect(await keptBlobs()).toHaveLength(2);

    await images.remove(right!.id, never);
    for (const layer of right!.layers) expect(snapshotter.has(layer)).toBe(false);
    expect(await keptBlobs()).toEqual([]);
    expect(await images.fsInfo()).toMatchObject({ usedBytes: 0n, inodesUsed: 0n });
    await images.remove(right!.id, never);
  });

  test("leaves the layers to the containers that stand on them, until the last has gone", async () => {
    const inUse = new Set<string>();
    await images[Symbol.asyncDispose]();
    images = await open({ inUse: () => inUse });
    const [left] = await two();
    inUse.add(left!.id);
    await images.remove(left!.id, never);
    expect(images.get(left!.id)).toBeUndefined();
    expect(await readInside(left!.layers, "own")).toBe("left");
    inUse.clear();
    await images.collect();
    expect(snapshotter.has(left!.layers[1]!)).toBe(false);
  });

  test("does not take a layer from a pull under way", async () => {
    const shared = gzipLayer(text("shared", "under way"));
    const last = gzipLayer(text("last", randomBytes(1000)));
    await pushImage(registry.url, built("case/old:1", [shared]));
    await pushImage(registry.url, built("case/new:1", [shared, last]));
    const old = await images.pull({ ref: `${registry.host}/case/old:1` }, never);
    await using proxy = await startProxy(registry.url);
    const begun = Promise.withResolvers<void>();
    const proceed = Promise.withResolvers<void>();
    proxy.intercept = ({ path }, _, forward) => {
      if (!path.endsWith(last.blob.digest)) return false;
      begun.resolve();
      void proceed.promise.then(forward);
      return true;
    };
    const pull = images.pull({ ref: `${proxy.host}/case/new:1` }, never);
    await begun.promise;
    await images.remove(old.id, never);
    expect(snapshotter.has(old.layers[0]!)).toBe(true);
    proceed.resolve();
    expect(await readInside((await pull).layers, "shared")).toBe("under way");
  });
});

describe("After a restart", () => {
  test("images, names and usage are what they were", async () => {
    await pushImage(registry.url, built("case/stays:1", [gzipLayer(text("x", "12345"))], { User: "12" }));
    const image = await images.pull({ ref: `${registry.host}/case/stays:1` }, never);
    const usage = await images.fsInfo();
    // As the disk counts it: whole blocks, and the layer's own directory or image file.
    expect(usage.usedBytes).toBeGreaterThanOrEqual(5n);
    expect(usage.usedBytes).toBeLessThanOrEqual(32_768n);
    expect(usage.inodesUsed).toBeGreaterThanOrEqual(1n);
    await images[Symbol.asyncDispose]();
    images = await open({ pinned: [image.repoTags[0]!] });
    expect(images.list()).toEqual([{ ...image, pinned: true }]);
    expect(await images.fsInfo()).toEqual(usage);
  });

  test("an image that lost a layer is not listed, and a pull brings it back", async () => {
    await pushImage(registry.url, built("case/lost:1", [gzipLayer(text("x", "lost"))]));
    const ref = `${registry.host}/case/lost:1`;
    const image = await images.pull({ ref }, never);
    await images[Symbol.asyncDispose]();
    await snapshotter.removeLayer(image.layers[0]!);
    images = await open();
    expect(images.list()).toEqual([]);
    expect(images.get(ref)).toBeUndefined();
    expect(await images.pull({ ref }, never)).toEqual(image);
  });

  test("a record that cannot be read for a moment costs no image", async () => {
    await pushImage(registry.url, built("case/odd:1", [gzipLayer(text("x", "odd"))]));
    const ref = `${registry.host}/case/odd:1`;
    const image = await images.pull({ ref }, never);
    const blobs = await keptBlobs();
    const record = join(root, "images", "images", `${image.id.replace(":", "-")}.json`);
    const written = await readFile(record);
    await images[Symbol.asyncDispose]();
    await rm(record);
    await mkdir(record);
    images = await open();
    expect(images.list()).toEqual([]);
    await images[Symbol.asyncDispose]();
    await rm(record, { recursive: true });
    await writeFile(record, written);
    images = await open();
    expect(images.get(image.id)?.layers).toEqual(image.layers);
    expect(await keptBlobs()).toEqual(blobs);
  });

  test("layers whose record nobody can read go when no other image and no container needs them", async () => {
    const [shared, own, odd] = ["shared", "own", "odd"].map((name) => gzipLayer(text("x", name))) as [
      Layer,
      Layer,
      Layer,
    ];
    const pull = async (name: string, ...layers: Layer[]) => {
      await pushImage(registry.url, built(`case/${name}:1`, layers));
      return await images.pull({ ref: `${registry.host}/case/${name}:1` }, never);
    };
    const good = await pull("readable", shared);
    const torn = await pull("torn", shared, own);
    const dead = await pull("dead", odd);
    const fileOf = ({ id }: { id: string }) => `${id.replace(":", "-")}.json`;
    const target = join(root, "in-use");
    await mkdir(target);
    await snapshotter.mountContainer("user", torn.layers, target);
    await images[Symbol.asyncDispose]();
    await writeFile(join(root, "images", "images", fileOf(torn)), "{");
    // A directory is what can be neither read nor parsed.
    await rm(join(root, "images", "images", fileOf(dead)));
    await mkdir(join(root, "images", "images", fileOf(dead)));

    images = await open({ keepMs: 300 });
    expect(images.list().map(({ id }) => id)).toEqual([good.id]);
    const there = () => [good, torn, dead].map(({ layers }) => layers.map((id) => snapshotter.has(id)));
    await vi.waitUntil(() => !snapshotter.has(dead.layers[0]!), { timeout: 20_000 });
    expect(there()).toEqual([[true], [true, true], [false]]);
    expect((await readdir(join(root, "images", "aside"))).sort()).toEqual([torn, dead].map(fileOf).sort());
    expect(await readFile(join(target, "x"), "utf8")).toBe("own");

    await snapshotter.unmount(target);
    await snapshotter.removeContainer("user");
    await vi.waitUntil(() => !snapshotter.has(torn.layers[1]!), { timeout: 20_000 });
    expect(there()).toEqual([[true], [true, false], [false]]);
    expect(await readInside(good.layers, "x")).toBe("shared");
    expect((await pull("torn", shared, own)).layers).toEqual(torn.layers);
  });

  test("what a pull had half done is cleared away", async () => {
    const bottom = gzipLayer(text("x", "bottom"));
    const top = { ...gzipLayer(text("x", "top")), diffId: digestOf(Buffer.from("no")) };
    await pushImage(registry.url, built("case/half:1", [bottom, top]));
    await using proxy = await startProxy(registry.url);
    // The wrong layer comes when the right one is there: else its failure may end the pull before anything is kept.
    proxy.intercept = ({ path }, _, forward) => {
      if (!path.endsWith(top.blob.digest)) return false;
      void vi.waitUntil(() => snapshotter.has(bottom.diffId), { timeout: 30_000 }).then(forward, forward);
      return true;
    };
    await expect(images.pull({ ref: `${proxy.host}/case/half:1` }, never)).rejects.toThrow();
    expect(snapshotter.has(bottom.diffId)).toBe(true);
    await writeFile(join(root, "images", "staging", "left-over"), "x");
    await images[Symbol.asyncDispose]();
    images = await open({ keepMs: 0 });
    expect(existsSync(join(root, "images", "staging", "left-over"))).toBe(false);
    await images.collect();
    expect(snapshotter.has(bottom.diffId)).toBe(false);
    expect(await keptBlobs()).toEqual([]);
  });
});
