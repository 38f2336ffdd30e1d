import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { ArtifactManifest } from "@bulkhead/lib/api/artifact-manifest.ts";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import {
  type ArtifactRequest,
  type ArtifactSources,
  fetchArtifact,
  verifyArtifact,
} from "../../runtime/src/artifact/fetch.ts";
import { createLinux } from "../../runtime/src/linux/linux-ffi.ts";
import { inCache } from "../tools/cache.ts";
import { outcome, run } from "../tools/run.ts";
import { imageOf, type Layer, mediaTypes } from "./image.ts";
import { type Blob, blobOf, descriptorOf, digestOf, pushBlob, pushManifest } from "./push.ts";
import { type RunningRegistry, startRegistry } from "./registry.ts";
import { type Entry, tarOf } from "./tar.ts";

const never = new AbortController().signal;
const limits = { files: 1000, bytes: 64 << 20 };
let scratch: string;
let registry: RunningRegistry;
let directory: string;
let serial = 0;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "bh-artifact-"));
  registry = await startRegistry({ dir: join(scratch, "registry") });
});
afterAll(async () => {
  await registry.stop();
  await rm(scratch, { recursive: true, force: true });
});
beforeEach(() => {
  directory = join(scratch, `artifact-${++serial}`);
});

const layerOf = (tar: Buffer): Layer => ({
  diffId: digestOf(tar),
  blob: blobOf(mediaTypes.gzip, gzipSync(tar)),
});
const file = (path: string, data: string, mode = 0o644): Entry => ({ type: "file", path, data, mode });

/** Pushes blobs and a document; says its reference by digest. */
const pushed = async (repository: string, blobs: Blob[], document: Blob): Promise<string> => {
  const target = { url: registry.url, repository };
  for (const blob of blobs) await pushBlob(target, blob);
  await pushManifest(target, document.digest, document);
  return `${registry.host}/${repository}@${document.digest}`;
};
const pushImage = (repository: string, ...layers: Layer[]): Promise<string> => {
  const { config, manifest } = imageOf(layers);
  return pushed(repository, [...layers.map(({ blob }) => blob), config], manifest);
};
const imageWith = (repository: string, ...layers: Entry[][]): Promise<string> =>
  pushImage(repository, ...layers.map((entries) => layerOf(tarOf(entries))));

const noSources: ArtifactSources = {
  mirrors: {},
  certsDir: undefined,
  credentialsFile: undefined,
  signatures: [],
  log: { debug: () => {}, warn: () => {} },
};
const fetchIt = (
  image: string,
  more: Partial<ArtifactRequest> = {},
  sources: Partial<ArtifactSources> = {},
) =>
  fetchArtifact(
    { image, directory, keys: [], identity: "repository", limits, ...more },
    { ...noSources, ...sources },
    never,
  );
const nothingLeft = async (): Promise<void> => {
  expect((await readdir(scratch)).filter((name) => name.startsWith(basename(directory)))).toEqual([]);
};
const refused = async (image: Promise<string>, why: string, more: Partial<ArtifactRequest> = {}) => {
  await expect(fetchIt(await image, more)).rejects.toThrow(why);
  await nothingLeft();
};
const textOf = (path: string): Promise<string> => readFile(join(directory, "root", path), "utf8");

describe("An artifact", () => {
  test("that is an image becomes a directory with a list of digests; a later layer wins", async () => {
    await mkdir(`${directory}.killed.part`);
    await writeFile(join(`${directory}.killed.part`, "rubbish"), "of a fetch that was killed");
    const image = await imageWith(
      "gvisor",
      [file("bin/runsc", "one", 0o755), file("bin/old", "gone"), file("share/doc", "text")],
      [
        file("bin/runsc", "two", 0o755),
        file("bin/.wh.old", ""),
        { type: "symlink", path: "bin/r", to: "runsc" },
      ],
    );
    const { manifest, list } = await fetchIt(image);
    expect((await readdir(directory)).sort()).toEqual(["manifest.json", "root"]);
    expect((await readdir(join(directory, "root"), { recursive: true })).sort()).toEqual(
      ["bin", "bin/r", "bin/runsc", "share", "share/doc"].sort(),
    );
    expect(await textOf("bin/r")).toBe("two");
    const { mode, uid } = await lstat(join(directory, "root/bin/runsc"));
    expect([mode & 0o7777, uid]).toEqual([0o755, 0]);
    const written = await readFile(join(directory, "manifest.json"));
    expect(digestOf(written)).toBe(list);
    expect(ArtifactManifest.parse(JSON.parse(written.toString()))).toEqual(manifest);
    expect(manifest.files).toEqual([
      { kind: "link", path: "bin/r", target: "runsc" },
      {
        kind: "file",
        path: "bin/runsc",
        sha256: digestOf(Buffer.from("two")).slice("sha256:".length),
        size: 3,
        mode: 0o755,
      },
      expect.objectContaining({ path: "share/doc", mode: 0o644 }),
    ]);
    await expect(fetchIt(image)).rejects.toThrow("is there already");
    expect((await readdir(scratch)).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("of an index is the one for the platform", async () => {
    const target = { url: registry.url, repository: "multi" };
    const manifests = [];
    for (const architecture of ["amd64", "arm64"]) {
      const layer = layerOf(tarOf([file("bin/runsc", architecture, 0o755)]));
      const config = blobOf(mediaTypes.config, {
        architecture,
        os: "linux",
        rootfs: { type: "layers", diff_ids: [layer.diffId] },
      });
      const manifest = blobOf(mediaTypes.manifest, {
        schemaVersion: 2,
        mediaType: mediaTypes.manifest,
        config: descriptorOf(config),
        layers: [descriptorOf(layer.blob)],
      });
      for (const blob of [layer.blob, config]) await pushBlob(target, blob);
      await pushManifest(target, manifest.digest, manifest);
      manifests.push({ ...descriptorOf(manifest), platform: { os: "linux", architecture } });
    }
    const index = blobOf(mediaTypes.index, { schemaVersion: 2, mediaType: mediaTypes.index, manifests });
    const image = await pushed("multi", [], index);
    for (const architecture of ["amd64", "arm64"]) {
      const { manifest } = await fetchIt(image, { platform: { os: "linux", architecture } });
      expect(await textOf("bin/runsc")).toBe(architecture);
      expect(manifest.platform).toBe(`linux/${architecture}`);
      await rm(directory, { recursive: true });
    }
    await refused(
      Promise.resolve(image),
      "it is not made for linux/riscv64, only for linux/amd64, linux/arm64",
      {
        platform: { os: "linux", architecture: "riscv64" },
      },
    );
  });

  test("of single blobs puts programs into bin/, and tars where they say", async () => {
    const blobs = [
      { ...blobOf("application/octet-stream", Buffer.from("runsc")), title: "runsc" },
      { ...blobOf("text/toml", Buffer.from("[x]")), title: "share/private.toml" },
      { ...layerOf(tarOf([file("share/more", "more")])).blob, title: "" },
    ];
    const empty = blobOf("application/vnd.oci.empty.v1+json", Buffer.from("{}"));
    const manifest = blobOf(mediaTypes.manifest, {
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      artifactType: "application/vnd.example.shim",
      config: descriptorOf(empty),
      layers: blobs.map(({ title, ...blob }) => ({
        ...descriptorOf(blob),
        annotations: { "org.opencontainers.image.title": title },
      })),
    });
    await fetchIt(await pushed("blobs", [...blobs, empty], manifest));
    expect(await textOf("bin/runsc")).toBe("runsc");
    expect((await lstat(join(directory, "root/bin/runsc"))).mode & 0o7777).toBe(0o755);
    expect(await textOf("share/private.toml")).toBe("[x]");
    expect(await textOf("share/more")).toBe("more");
  });
});

describe("An image of kata-deploy, as it is", () => {
  // Names and places as in its images: the release laid out (up to 3.x), or a tarball for each component (4.x).
  const base: Entry[] = [
    file("bin/su", "setuid", 0o4755),
    { type: "symlink", path: "bin/sh", to: "/bin/busybox" },
    file("usr/bin/kata-deploy", "its installer", 0o755),
  ];
  const shim = "bin/containerd-shim-kata-v2";
  const config = "share/defaults/kata-containers";

  test("gives what lies below opt/kata-artifacts/opt/kata, and nothing else of it", async () => {
    const kata = (path: string): string => `opt/kata-artifacts/opt/kata/${path}`;
    await fetchIt(
      await imageWith("kata-3", base, [
        file(kata(shim), "shim"),
        file(kata(`${config}/configuration-qemu.toml`), "qemu"),
        { type: "symlink", path: kata(`${config}/configuration.toml`), to: "configuration-qemu.toml" },
        {
          type: "symlink",
          path: kata("share/kata-containers/vmlinux.container"),
          to: "/opt/kata/bin/kernel",
        },
      ]),
    );
    expect((await readdir(join(directory, "root"))).sort()).toEqual(["bin", "share"]);
    expect(await textOf(`${config}/configuration.toml`)).toBe("qemu");
    expect((await lstat(join(directory, "root", shim))).mode & 0o7777).toBe(0o755);
    expect(await readlink(join(directory, "root/share/kata-containers/vmlinux.container"))).toBe(
      "../../bin/kernel",
    );
  });

  test("gives what its tarballs hold below opt/kata", async () => {
    const component = (name: string, ...entries: Entry[]): Entry => ({
      type: "file",
      path: `opt/kata-artifacts/tarballs/kata-static-${name}.tar.zst`,
      data: zstdCompressSync(tarOf(entries)),
    });
    const image = await imageWith("kata-4", base, [
      component("shim-v2-rust", { type: "folder", path: "./opt" }, file(`./opt/kata/${shim}`, "shim", 0o755)),
      component("kernel", file("./opt/kata/share/kata-containers/vmlinux-6", "kernel"), {
        type: "symlink",
        path: "./opt/kata/share/kata-containers/vmlinux.container",
        to: "vmlinux-6",
      }),
      component("nydus", file("./opt/kata-artifacts/nydus/x", "left out"), file("./usr/bin/y", "left out")),
    ]);
    await fetchIt(image);
    expect((await readdir(join(directory, "root"))).sort()).toEqual(["bin", "share"]);
    expect(await textOf(shim)).toBe("shim");
    expect(await textOf("share/kata-containers/vmlinux.container")).toBe("kernel");
  });

  test("is refused for what its release may not hold", async () => {
    await refused(
      imageWith("kata-bad", [file("opt/kata-artifacts/opt/kata/bin/qemu", "x", 0o4755)]),
      '"bin/qemu" is setuid',
    );
  });
});

describe("A hostile artifact is refused in words, and leaves nothing:", () => {
  const cases: [string, Entry[], string][] = [
    ["a name that climbs out", [file("bin/../../../etc/cron.d/x", "x")], 'has ".." in its name'],
    ["a setuid program", [file("bin/su", "x", 0o4755)], '"bin/su" is setuid'],
    ["a setgid program", [file("bin/sg", "x", 0o2755)], '"bin/sg" is setgid'],
    [
      "a link out",
      [{ type: "symlink", path: "bin/x", to: "/etc/shadow" }],
      'is a symbolic link out of the artifact ("/etc/shadow")',
    ],
    [
      "a file behind a link",
      [{ type: "symlink", path: "etc", to: "/etc" }, file("etc/passwd", "x")],
      "is a symbolic link out of the artifact",
    ],
    [
      "a hard link out",
      [{ type: "link", path: "bin/x", to: "etc/shadow", mode: 0o644 }],
      'is a hard link to "etc/shadow", which is no file of the artifact',
    ],
    ["a name that is no text", [file("bin/a\nb", "x")], "has a name that is no plain text"],
    ["nothing at all", [{ type: "folder", path: "bin" }], "it has no files"],
  ];
  for (const [n, [what, entries, why]] of cases.entries())
    test(what, () => refused(imageWith(`hostile/${n}`, entries), why));

  test("an absolute name stays inside", async () => {
    await fetchIt(await imageWith("hostile/absolute", [file("/bin/runsc", "x", 0o755)]));
    expect(await textOf("bin/runsc")).toBe("x");
  });

  test("devices, pipes and capabilities", async () => {
    const linux = createLinux();
    for (const [what, make] of [
      ["device", (path: string) => linux.mknod(Buffer.from(path), 0o020600, 1, 3)],
      ["named pipe", (path: string) => linux.mkfifo(Buffer.from(path), 0o600)],
    ] as const) {
      const tree = await mkdtemp(join(scratch, "tree-"));
      make(join(tree, "odd"));
      await refused(
        pushImage(
          `hostile/${what.replace(" ", "-")}`,
          layerOf(execFileSync("tar", ["-C", tree, "-cf", "-", "."])),
        ),
        `"odd" is a ${what}`,
      );
    }
    const tree = await mkdtemp(join(scratch, "tree-"));
    await writeFile(join(tree, "ping"), "x");
    await run(["setcap", "cap_net_raw+ep", join(tree, "ping")]);
    const tar = ["--xattrs", "--xattrs-include=security.capability", "-C", tree, "-cf", "-", "."];
    await refused(pushImage("hostile/capable", layerOf(execFileSync("tar", tar))), '"ping" has capabilities');
  });

  test("too many files, too many bytes, compressed or declared", async () => {
    const many = Array.from({ length: 30 }, (_, n) => file(`share/${n}`, "x"));
    await refused(imageWith("hostile/many", many), "it has more than 20 entries", {
      limits: { files: 20, bytes: 1 << 20 },
    });
    const large = [file("share/zeros", "\0".repeat(5 << 20))];
    await refused(imageWith("hostile/large", large), "it has more than 1048576 bytes", {
      limits: { files: 20, bytes: 1 << 20 },
    });
    const endless = Buffer.concat([tarOf([file("x", "x")]), Buffer.alloc(8 << 20)]);
    await refused(pushImage("hostile/endless", layerOf(endless)), "it has more than 1048576 bytes", {
      limits: { files: 20, bytes: 1 << 20 },
    });
  });

  test("content of another digest", async () => {
    const layer = layerOf(tarOf([file("bin/runsc", "x", 0o755)]));
    await refused(
      pushImage("hostile/other", { ...layer, diffId: `sha256:${"0".repeat(64)}` }),
      "the content of a layer has the digest sha256:",
    );
    await refused(Promise.resolve(`${registry.host}/gvisor:latest`), "it must be named by digest");
  });
});

const cosign = inCache("bin", "cosign");
describe.runIf(existsSync(cosign))(
  `A signature by cosign${existsSync(cosign) ? "" : " (skipped: ./dev tools makes cosign)"}`,
  () => {
    let publicKey: string;
    let otherKey: string;
    const env = (): Record<string, string> => ({ COSIGN_PASSWORD: "x", HOME: scratch });
    beforeAll(async () => {
      for (const name of ["own", "other"]) {
        await mkdir(join(scratch, name));
        await run([cosign, "generate-key-pair"], { cwd: join(scratch, name), env: env() });
      }
      publicKey = join(scratch, "own/cosign.pub");
      otherKey = join(scratch, "other/cosign.pub");
    });
    const sign = (image: string): Promise<unknown> => {
      const flags = ["--yes", "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry"];
      return run([cosign, "sign", ...flags, "--key", join(scratch, "own/cosign.key"), image], { env: env() });
    };

    test("is wanted before anything is fetched of the files, and by the right key", async () => {
      const layer = layerOf(tarOf([file("bin/runsc", "signed", 0o755)]));
      const image = await pushImage("signed/gvisor", layer);
      // Whoever asked for the layer would hear that it is not there.
      const hex = layer.blob.digest.slice("sha256:".length);
      const blob = join(
        scratch,
        `registry/content/docker/registry/v2/blobs/sha256/${hex.slice(0, 2)}/${hex}/data`,
      );
      const bytes = await readFile(blob);
      await rm(blob);
      await refused(Promise.resolve(image), "the image is not signed", { keys: [publicKey] });
      await sign(image);
      await refused(Promise.resolve(image), "it is by another key", { keys: [otherKey] });
      const policy = { image, keys: [publicKey], identity: "repository" } as const;
      await expect(verifyArtifact(policy, noSources, never)).resolves.toEqual({
        digest: image.split("@")[1],
        manifest: image.split("@")[1],
      });
      await expect(verifyArtifact({ ...policy, keys: [otherKey] }, noSources, never)).rejects.toThrow(
        "it is by another key",
      );
      await writeFile(blob, bytes);
      await fetchIt(image, { keys: [otherKey, publicKey] });
      expect(await textOf("bin/runsc")).toBe("signed");
    });

    test("is also wanted where the node's own policy names the image", async () => {
      const image = await imageWith("policy/gvisor", [file("bin/runsc", "x", 0o755)]);
      const rule = { images: [`${registry.host}/policy/*`], keys: [publicKey], identity: "any" as const };
      await expect(fetchIt(image, {}, { signatures: [rule] })).rejects.toThrow("the image is not signed");
      await nothingLeft();
      await sign(image);
      await fetchIt(image, {}, { signatures: [rule] });
    });

    test("holds in a registry that stands for all others, of a copy too when the policy says so", async () => {
      const copy = await imageWith("airgap/kata-containers/kata-deploy", [file("bin/x", "mirrored", 0o755)]);
      await sign(copy);
      const image = `quay.io/kata-containers/kata-deploy@${copy.split("@")[1]}`;
      const more = { keys: [publicKey], registry: `${registry.host}/airgap` };
      await refused(Promise.resolve(image), "no signature of the image is valid: it is for", more);
      await fetchIt(image, { ...more, identity: "any" });
      expect(await textOf("bin/x")).toBe("mirrored");
    });
  },
);

test("`artifact fetch` says in one line what it fetched, or why it did not", async () => {
  const image = await imageWith("command", [file("bin/runsc", "x", 0o755)]);
  const config = join(scratch, "runtime.yaml");
  await writeFile(config, `registries: { mirrors: { nowhere.invalid: ["http://${registry.host}"] } }\n`);
  const program = [
    process.execPath,
    join(import.meta.dirname, "../../runtime/src/main.ts"),
    "artifact",
    "fetch",
  ];
  const mirrored = image.replace(registry.host, "nowhere.invalid");
  const good = await outcome([...program, "--config", config, mirrored, directory], {});
  expect([good.code, JSON.parse(good.stdout)]).toMatchObject([
    0,
    { files: 1, bytes: 1, list: expect.stringMatching(/^sha256:/) },
  ]);
  const bad = await outcome(
    [...program, "--config", config, "--max-bytes", "1", mirrored, `${directory}-2`],
    {},
  );
  expect([bad.code, bad.stderr]).toEqual([
    1,
    expect.stringMatching(/^bulkhead-runtime: Cannot fetch artifact .*more than 1 bytes/),
  ]);
});
