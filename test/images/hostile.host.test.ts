import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { openImages } from "../../runtime/src/image/store.ts";
import { createLinux } from "../../runtime/src/linux/linux-ffi.ts";
import { overlay } from "../../runtime/src/snapshot/overlay.ts";
import { mediaTypes } from "./image.ts";
import { startProxy } from "./proxy.ts";
import { blobOf, descriptorOf, digestOf, pushBlob, pushManifest } from "./push.ts";
import { startRegistry } from "./registry.ts";
import { gzipLayer, never, push, selfSigned, text, useStore } from "./store-fixture.ts";
import { tarOf } from "./tar.ts";

/* The proxies before the registry are fakes: they stand for registries that misbehave as the real one never does. */

const use = useStore();
const target = (repository: string) => ({ url: use.registry.url, repository });
const basic = `Basic ${Buffer.from("walled:open sesame").toString("base64")}`;
const user = { username: "walled", password: "open sesame" };

describe("A real registry behind TLS and a password", () => {
  test("is reached by hosts.toml with the node's own credentials: by file and by helper", async () => {
    const dir = join(use.scratch, "walled");
    await mkdir(dir);
    const tls = await selfSigned(dir);
    const htpasswd = join(dir, "htpasswd");
    await writeFile(htpasswd, "walled:$2y$04$5AhJo.lRtKUvy4y4BjD6eeR7aYUfUL9kH016.kmJYKptudCQJZ.LK\n");
    // Pushed in the clear first: what is in its folder is served again.
    {
      await using open = await startRegistry({ dir });
      await push({ url: open.url, repository: "private/image" }, "1", [gzipLayer(text("s", "secret"))]);
    }
    await using walled = await startRegistry({ dir, htpasswd, tls });
    const ref = `${walled.host}/private/image:1`;
    const certsDir = join(use.root, "certs.d");
    await mkdir(join(certsDir, walled.host), { recursive: true });
    await writeFile(
      join(certsDir, walled.host, "hosts.toml"),
      `server = "${walled.url}"\n[host."${walled.url}"]\nca = "${tls.cert}"\n`,
    );
    const credentialsFile = join(use.root, "config.json");
    await use.reopen({ certsDir, credentialsFile });
    await expect(use.images.pull({ ref }, never)).rejects.toMatchObject({ code: "permission-denied" });

    await writeFile(
      credentialsFile,
      JSON.stringify({ auths: { [walled.host]: { auth: basic.slice("Basic ".length) } } }),
    );
    expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);

    const bin = join(use.root, "bin");
    await mkdir(bin);
    const helper = join(bin, "docker-credential-bh-test");
    await writeFile(
      helper,
      `#!/bin/sh\nread -r server; [ "$1 $server" = "get ${walled.host}" ] || exit 1\n` +
        `echo '{"Username":"walled","Secret":"open sesame"}'\n`,
    );
    await chmod(helper, 0o755);
    await writeFile(credentialsFile, JSON.stringify({ credHelpers: { [walled.host]: "bh-test" } }));
    const path = process.env.PATH;
    process.env.PATH = `${bin}${delimiter}${path}`;
    try {
      await use.reopen({ certsDir, credentialsFile });
      expect((await use.images.pull({ ref }, never)).repoTags).toEqual([ref]);
    } finally {
      process.env.PATH = path;
    }
  });

  test("gets a client certificate and configured headers, and is told whose images a mirror is asked for", async () => {
    await push(target("case/client"), "1", [gzipLayer(text("c", "c"))]);
    const tls = await selfSigned(use.root);
    const pem = { cert: await readFile(tls.cert, "utf8"), key: await readFile(tls.key, "utf8") };
    await using mirror = await startProxy(use.registry.url, { ...pem, ca: pem.cert, requestCert: true });
    const certsDir = join(use.root, "certs.d");
    await mkdir(join(certsDir, "_default"), { recursive: true });
    await writeFile(
      join(certsDir, "_default", "hosts.toml"),
      `[host."${mirror.url}"]\nclient = [["${tls.cert}", "${tls.key}"]]\nskip_verify = true\n`,
    );
    await use.reopen({ certsDir });
    const image = await use.images.pull({ ref: "somewhere.example/case/client:1", auth: user }, never);
    expect(image.repoTags).toEqual(["somewhere.example/case/client:1"]);
    expect(mirror.seen.every(({ path }) => path.endsWith("?ns=somewhere.example"))).toBe(true);
    expect(mirror.seen.some(({ authorization }) => authorization !== undefined)).toBe(false);
  });
});

describe("Credentials stay with whom they are for", () => {
  test("another host's challenge after a redirect is not answered (CVE-2020-15157)", async () => {
    await push(target("case/leak"), "1", [gzipLayer(text("l", "l"))]);
    await using thief = await startProxy(use.registry.url);
    thief.intercept = (_, response) =>
      Boolean(response.writeHead(401, { "www-authenticate": `Bearer realm="${thief.url}/token"` }).end());
    await using proxy = await startProxy(use.registry.url);
    proxy.intercept = ({ path }, response) =>
      path.includes("/blobs/") && Boolean(response.writeHead(307, { location: `${thief.url}${path}` }).end());
    const pull = use.images.pull({ ref: `${proxy.host}/case/leak:1`, auth: user }, never);
    await expect(pull).rejects.toMatchObject({ code: "permission-denied" });
    expect(thief.seen.map(({ path }) => path)).not.toContainEqual(expect.stringMatching(/^\/token/));
    expect(thief.seen.filter(({ authorization }) => authorization !== undefined)).toEqual([]);
  });

  test("a token server's redirect is not followed", async () => {
    await using thief = await startProxy(use.registry.url);
    await using proxy = await startProxy(use.registry.url);
    proxy.intercept = ({ path }, response) => {
      if (path.startsWith("/token")) response.writeHead(307, { location: `${thief.url}/token` }).end();
      else response.writeHead(401, { "www-authenticate": `Bearer realm="${proxy.url}/token"` }).end();
      return true;
    };
    const pull = use.images.pull({ ref: `${proxy.host}/case/any:1`, auth: user }, never);
    await expect(pull).rejects.toThrow(/redirects, which is not followed/);
    expect(thief.seen).toEqual([]);
  });
});

describe("A registry that misbehaves", () => {
  test("with a manifest that does not end is cut off", async () => {
    await using proxy = await startProxy(use.registry.url);
    let sent = 0;
    proxy.intercept = (_, response) => {
      response.writeHead(200, { "content-type": mediaTypes.manifest });
      const more = (): void => {
        do sent += 64 << 10;
        while (!response.destroyed && response.write(Buffer.alloc(64 << 10, " ")));
      };
      response.on("drain", more);
      more();
      return true;
    };
    await expect(use.images.pull({ ref: `${proxy.host}/case/endless:1` }, never)).rejects.toThrow(
      /has more than 4194304 bytes/,
    );
    expect(sent).toBeLessThan(64 << 20);
  });

  test("with redirects in a circle is given up", async () => {
    await using proxy = await startProxy(use.registry.url);
    proxy.intercept = ({ path }, response) => Boolean(response.writeHead(302, { location: path }).end());
    await expect(use.images.pull({ ref: `${proxy.host}/case/circle:1` }, never)).rejects.toThrow(
      /redirects more than 5 times/,
    );
    expect(proxy.seen).toHaveLength(6);
  });

  test("that falls silent fails the pull after the configured time, and says how far it was", async () => {
    const layer = gzipLayer(text("big", randomBytes(1 << 20)));
    await push(target("case/silent"), "1", [layer]);
    await using proxy = await startProxy(use.registry.url);
    proxy.intercept = ({ path, range }, response) => {
      if (!path.includes(layer.blob.digest)) return false;
      const from = Number(/bytes=(\d+)-/.exec(range ?? "")?.[1] ?? 0);
      response.writeHead(from > 0 ? 206 : 200, {
        "content-length": layer.blob.bytes.length - from,
        ...(from > 0 && { "content-range": `bytes ${from}-${layer.blob.bytes.length - 1}/*` }),
      });
      if (from === 0) response.write(layer.blob.bytes.subarray(0, 70_000));
      else response.flushHeaders();
      return true;
    };
    await use.reopen({ stallMs: 1000 });
    await expect(use.images.pull({ ref: `${proxy.host}/case/silent:1` }, never)).rejects.toMatchObject({
      code: "unknown",
      message: expect.stringMatching(
        /^RegistryUnavailable: .*nothing came of blob .* for 1 seconds: 70000 of/,
      ),
    });
    // What came is kept: the next pull asks for the rest alone.
    proxy.intercept = () => false;
    proxy.seen.length = 0;
    await use.images.pull({ ref: `${proxy.host}/case/silent:1` }, never);
    const asked = proxy.seen.filter(({ path }) => path.includes(layer.blob.digest));
    expect(asked.map(({ range }) => range)).toEqual(["bytes=70000-"]);
    expect(await use.staged()).toEqual([]);
  });

  test("in the middle of a layer is followed by the next mirror from there", async () => {
    const layer = gzipLayer(text("big", randomBytes(1 << 20)));
    await push(target("case/half"), "1", [layer]);
    await using broken = await startProxy(use.registry.url);
    await using whole = await startProxy(use.registry.url);
    broken.intercept = ({ path, range }, response) => {
      if (!path.includes(layer.blob.digest)) return false;
      if (range !== undefined) return Boolean(response.writeHead(404).end());
      response.writeHead(200, { "content-length": layer.blob.bytes.length });
      response.write(layer.blob.bytes.subarray(0, 300_000), () => setTimeout(() => response.destroy(), 50));
      return true;
    };
    await use.reopen({ mirrors: { "cut.example": [broken.url, whole.url] } });
    const image = await use.images.pull({ ref: "cut.example/case/half:1" }, never);
    expect(image.layers).toHaveLength(1);
    const asked = whole.seen.filter(({ path }) => path.includes(layer.blob.digest));
    expect(asked.map(({ range }) => range)).toEqual(["bytes=300000-"]);
  });

  test("with another part than was asked for does not spoil the layer", async () => {
    const layer = gzipLayer(text("big", randomBytes(1 << 20)));
    await push(target("case/part"), "1", [layer]);
    await using proxy = await startProxy(use.registry.url);
    let asked = 0;
    proxy.intercept = ({ path, range }, response) => {
      if (!path.includes(layer.blob.digest) || asked++ > 1) return false;
      const { length } = layer.blob.bytes;
      if (range === undefined) {
        response.writeHead(200, { "content-length": length });
        response.write(layer.blob.bytes.subarray(0, 400_000), () => setTimeout(() => response.destroy(), 50));
      } else
        response.writeHead(206, { "content-range": `bytes 0-${length - 1}/${length}` }).end(layer.blob.bytes);
      return true;
    };
    const image = await use.images.pull({ ref: `${proxy.host}/case/part:1` }, never);
    expect(image.layers).toHaveLength(1);
    expect(asked).toBeGreaterThan(2);
  });
});

describe("A pull", () => {
  test("goes on without its caller, and the retry joins it", async () => {
    const layer = gzipLayer(text("slow", randomBytes(300_000)));
    await push(target("case/joined"), "1", [layer]);
    await using proxy = await startProxy(use.registry.url);
    const begun = Promise.withResolvers<void>();
    const proceed = Promise.withResolvers<void>();
    proxy.intercept = ({ path }, _, forward) => {
      if (!path.includes(layer.blob.digest)) return false;
      begun.resolve();
      void proceed.promise.then(forward);
      return true;
    };
    const ref = `${proxy.host}/case/joined:1`;
    const quit = new AbortController();
    const first = use.images.pull({ ref }, quit.signal);
    await begun.promise;
    quit.abort(new DOMException("late", "TimeoutError"));
    await expect(first).rejects.toMatchObject({ code: "deadline-exceeded" });
    const retry = use.images.pull({ ref }, never);
    proceed.resolve();
    expect((await retry).repoTags).toEqual([ref]);
    expect(proxy.seen.filter(({ path }) => path.includes(layer.blob.digest))).toHaveLength(1);
  });

  test("that nobody comes back to is given up", async () => {
    const layer = gzipLayer(text("slow", randomBytes(300_000)));
    await push(target("case/left"), "1", [layer]);
    await using proxy = await startProxy(use.registry.url);
    const begun = Promise.withResolvers<void>();
    let closed = false;
    proxy.intercept = ({ path }, response) => {
      if (!path.includes(layer.blob.digest)) return false;
      response.on("close", () => {
        closed = true;
      });
      begun.resolve();
      return true;
    };
    await use.reopen({ lingerMs: 100 });
    const quit = new AbortController();
    const pull = use.images.pull({ ref: `${proxy.host}/case/left:1` }, quit.signal);
    await begun.promise;
    quit.abort();
    await expect(pull).rejects.toMatchObject({ code: "cancelled" });
    for (let n = 0; n < 100 && !closed; n++) await sleep(50);
    expect(closed).toBe(true);
    await use.images[Symbol.asyncDispose]();
    expect(await use.staged()).toEqual([]);
  });

  test("fetches a blob once that an image has twice", async () => {
    const layer = gzipLayer(text("twice", randomBytes(100_000)));
    const between = gzipLayer(text("between", "b"));
    await push(target("case/twice"), "1", [layer, between, layer]);
    await using proxy = await startProxy(use.registry.url);
    const image = await use.images.pull({ ref: `${proxy.host}/case/twice:1` }, never);
    expect(new Set(image.layers).size).toBe(3);
    expect(proxy.seen.filter(({ path }) => path.includes(layer.blob.digest))).toHaveLength(1);
    expect(await use.staged()).toEqual([]);
  });

  test("reads empty layers, an image without layers, and zstd:chunked with its frames to be skipped", async () => {
    const empty = gzipLayer();
    const { zstdCompressSync } = await import("node:zlib");
    const tar = tarOf([text("chunked", "yes")]);
    const skip = Buffer.concat([Buffer.from([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0]), Buffer.from("meta")]);
    const frames = [tar.subarray(0, 600), tar.subarray(600)].map((part) => zstdCompressSync(part));
    const chunked = {
      diffId: digestOf(tar),
      blob: blobOf(mediaTypes.zstd, Buffer.concat([...frames, skip])),
    };
    await push(target("case/odd"), "1", [empty, chunked]);
    const image = await use.images.pull({ ref: `${use.registry.host}/case/odd:1` }, never);
    expect(await use.read(image.layers, "chunked")).toEqual(["yes"]);
    await push(target("case/none"), "1", []);
    expect((await use.images.pull({ ref: `${use.registry.host}/case/none:1` }, never)).layers).toEqual([]);
  });

  test("finds a foreign layer where its manifest says, and tells nobody there who asks", async () => {
    const tls = await selfSigned(use.root);
    const pem = { cert: await readFile(tls.cert, "utf8"), key: await readFile(tls.key, "utf8") };
    const layer = gzipLayer(text("foreign", "yes"));
    const own = target("case/foreign");
    await push(own, "kept", [layer]);
    await using elsewhere = await startProxy(use.registry.url, pem);
    await using proxy = await startProxy(use.registry.url);
    const { config } = await push(own, "1", [layer]);
    const manifest = blobOf(mediaTypes.manifest, {
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      config: descriptorOf(config),
      layers: [
        {
          ...descriptorOf(layer.blob),
          mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
          urls: ["http://127.0.0.1:1/x", `${elsewhere.url}/v2/case/foreign/blobs/${layer.blob.digest}`],
        },
      ],
    });
    proxy.intercept = ({ path }, response) => {
      if (path.includes("/manifests/"))
        response.writeHead(200, { "content-type": mediaTypes.manifest }).end(manifest.bytes);
      else if (path.includes(layer.blob.digest)) response.writeHead(404).end();
      else return false;
      return true;
    };
    const certsDir = join(use.root, "certs.d");
    await mkdir(join(certsDir, elsewhere.host), { recursive: true });
    await writeFile(join(certsDir, elsewhere.host, "ca.crt"), pem.cert);
    await use.reopen({ certsDir });
    const image = await use.images.pull({ ref: `${proxy.host}/case/foreign:1`, auth: user }, never);
    expect(await use.read(image.layers, "foreign")).toEqual(["yes"]);
    expect(elsewhere.seen.map(({ authorization }) => authorization)).toEqual([undefined]);
  });

  test("of an artifact gives files by their titles; a title that leads out is refused", async () => {
    const own = target("case/artifact");
    const empty = blobOf("application/vnd.oci.empty.v1+json", Buffer.from("{}"));
    const long = `${"deep/".repeat(30)}model.bin`;
    const blobs = [Buffer.from("weights"), Buffer.from("untitled")].map((bytes) =>
      blobOf("text/plain", bytes),
    );
    const tarred = gzipLayer(text("from-tar", "tar"));
    for (const blob of [empty, ...blobs, tarred.blob]) await pushBlob(own, blob);
    const artifact = (title: string) =>
      blobOf(mediaTypes.manifest, {
        schemaVersion: 2,
        mediaType: mediaTypes.manifest,
        artifactType: "application/vnd.example.model",
        config: descriptorOf(empty),
        layers: [
          { ...descriptorOf(blobs[0]!), annotations: { "org.opencontainers.image.title": title } },
          descriptorOf(blobs[1]!),
          descriptorOf(tarred.blob),
        ],
      });
    await pushManifest(own, "1", artifact(long));
    await pushManifest(own, "evil", artifact("../../etc/passwd"));
    const pulled = await use.images.pull({ ref: `${use.registry.host}/case/artifact:1` }, never);
    expect(pulled).toMatchObject({ id: artifact(long).digest, isArtifact: true });
    const untitled = blobs[1]!.digest.replace(":", "-");
    expect(await use.read(pulled.layers, long, untitled, "from-tar")).toEqual(["weights", "untitled", "tar"]);
    await expect(use.images.pull({ ref: `${use.registry.host}/case/artifact:evil` }, never)).rejects.toThrow(
      /which is no file name/,
    );
  });
});

describe("A full disk", () => {
  const megabytes = 6;
  /** With a snapshotter on it; both go with `undo`. */
  const smallDisk = async (undo: AsyncDisposableStack) => {
    const disk = join(use.root, "disk");
    await mkdir(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m`, "bh-img-full", disk]);
    undo.defer(() => void execFileSync("umount", ["-l", disk]));
    const snapshotter = undo.use(await overlay(join(disk, "layers"), createLinux()));
    return { disk, snapshotter, log: { debug: () => {}, info: () => {}, warn: () => {} } };
  };

  test.each([
    ["blobs do not fit", () => gzipLayer(text("noise", randomBytes(8 << 20)))],
    ["files do not fit", () => gzipLayer(text("zeros", Buffer.alloc(64 << 20)))],
  ])("is named in the error and left without half an image when %s", async (_, make) => {
    const layer = make();
    const name = `case/full-${layer.diffId.slice(7, 17)}`;
    await push(target(name), "1", [gzipLayer(text("small", "s")), layer]);
    await using undo = new AsyncDisposableStack();
    const { disk, snapshotter, log } = await smallDisk(undo);
    const images = undo.use(await openImages({ root: join(disk, "images"), snapshotter, mirrors: {}, log }));
    await expect(images.pull({ ref: `${use.registry.host}/${name}:1` }, never)).rejects.toMatchObject({
      code: "resource-exhausted",
      message: expect.stringMatching(/^Cannot pull image .*no space left on device/i),
    });
    expect(images.list()).toEqual([]);
    expect(
      execFileSync("ls", [join(disk, "images", "staging"), join(disk, "images", "images")], {
        encoding: "utf8",
      }),
    ).not.toMatch(/json|-[0-9a-f]{4}-/);
    expect(existsSync(join(disk, "images", "blobs", "sha256"))).toBe(true);
    await push(target(name), "2", [gzipLayer(text("small", "s"))]);
    expect((await images.pull({ ref: `${use.registry.host}/${name}:2` }, never)).layers).toHaveLength(1);
  });

  test("to its last byte takes the removal of an image, which makes room, also over a restart", async () => {
    const names = ["case/full-used", "case/full-other"];
    for (const name of names) await push(target(name), "1", [gzipLayer(text("noise", randomBytes(1 << 20)))]);
    await using undo = new AsyncDisposableStack();
    const { disk, snapshotter, log } = await smallDisk(undo);
    const inUse = new Set<string>();
    const options = { root: join(disk, "images"), snapshotter, mirrors: {}, log, inUse: () => inUse };
    const images = await openImages(options);
    const [used, other] = await Promise.all(
      names.map((name) => images.pull({ ref: `${use.registry.host}/${name}:1` }, never)),
    );
    const fill = (): void => void spawnSync("dd", ["if=/dev/zero", `of=${join(disk, "filler")}`, "bs=4k"]);
    inUse.add(used!.id);
    fill();
    await images.remove(used!.id, never);
    expect(images.list().map(({ id }) => id)).toEqual([other!.id]);
    expect(snapshotter.has(used!.layers[0]!)).toBe(true);
    await images.remove(other!.repoTags[0]!, never);
    expect(images.list()).toEqual([]);
    expect(snapshotter.has(other!.layers[0]!)).toBe(false);
    await images[Symbol.asyncDispose]();
    await writeFile(join(disk, "images", "refs.json.half.tmp"), "");
    const again = undo.use(await openImages(options));
    expect(again.get(other!.repoTags[0]!)).toBeUndefined();
    expect(await readdir(join(disk, "images"))).not.toContain("refs.json.half.tmp");
  });
});
