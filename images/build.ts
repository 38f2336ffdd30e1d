#!/usr/bin/env node
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import {
  chmod,
  copyFile,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs, promisify } from "node:util";
import { createGzip } from "node:zlib";
import { bundle, operatorEnvironment, operatorFlags, workersOf } from "./bundle.ts";
import { here, librariesOf, type Parts, partsFor } from "./parts.ts";

/**
 * Builds the images of operator and node agent and pushes them:
 *
 *   node images/build.ts --registry HOST:PORT --tag T [--release V] [--insecure] [--only operator|node-agent] [--arch A …]
 *
 * For this machine's architecture, or for those that `--arch` names: an index of them where they are several.
 *
 * An image is a list of layers, a layer a list of files, and nothing else decides its bytes: each layer is kept in
 * the cache by the hash of its files, so that a build where nothing changed writes nothing. The layers that never
 * change with our own code come first (images/README.md).
 *
 *   base      Node and its shared libraries                       both images
 *   walls     conmon, runc, crun, runsc and its shim, the canary  node agent
 *   programs  our own bundles and the manifest of the files       each
 */

const run = promisify(execFile);
const repository = dirname(import.meta.dirname);
const { values } = parseArgs({
  options: {
    registry: { type: "string" },
    tag: { type: "string", default: "dev" },
    insecure: { type: "boolean", default: false },
    only: { type: "string" },
    arch: { type: "string", multiple: true, default: [here] },
    /** The version that the programs say; package.json's when left out. */
    release: { type: "string" },
    cache: { type: "string", default: process.env.BULKHEAD_CACHE ?? join(homedir(), ".cache/bulkhead") },
    help: { type: "boolean", default: false },
  },
});
const usage =
  "node images/build.ts --registry HOST:PORT [--tag T] [--release V] [--insecure] [--only operator|node-agent] [--arch amd64|arm64 …] [--cache DIR]";

/** Where the agent puts the bundle on a node: programs of ours name their loader by this path. */
const home = "/opt/bulkhead/current";
const cache = join(values.cache, "images");

/** A file of an image: content from a file, a text, or a link. */
type Source =
  | { from: string; mode?: number; elf?: { libraries: string; loader: string } }
  | { text: string; mode?: number }
  | { link: string };
type Files = Record<string, Source>;

/** One layer or image as it lies in the cache. */
type Layer = { digest: string; size: number; diffId: string; path: string };

const sha256 = (bytes: string | Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Says what takes time. */
const timed = async <T>(what: string, work: () => Promise<T>): Promise<T> => {
  const startedAt = performance.now();
  const result = await work();
  process.stderr.write(`  ${what}: ${((performance.now() - startedAt) / 1000).toFixed(1)} s\n`);
  return result;
};

/** What identifies a file without reading it all; content that is equal may still be built twice, never the other way. */
async function identity(source: Source): Promise<string> {
  if ("link" in source) return `link ${source.link}`;
  if ("text" in source) return `text ${sha256(source.text)} ${source.mode ?? 0o644}`;
  const stat = await lstat(source.from);
  return `file ${source.from} ${stat.size} ${stat.mtimeMs} ${stat.ino} ${source.mode ?? 0o644} ${JSON.stringify(source.elf ?? null)}`;
}

async function keyOf(files: Files): Promise<string> {
  const lines = await Promise.all(
    Object.entries(files).map(async ([path, source]) => `${path} ${await identity(source)}`),
  );
  return sha256(lines.sort().join("\n")).slice(0, 32);
}

/** Puts the files of a layer into a directory. */
async function materialize(files: Files, directory: string): Promise<void> {
  for (const [path, source] of Object.entries(files)) {
    const to = join(directory, path);
    await mkdir(dirname(to), { recursive: true });
    if ("link" in source) await symlink(source.link, to);
    else if ("text" in source) await writeFile(to, source.text);
    else {
      await copyFile(source.from, to);
      if (source.elf !== undefined) {
        await chmod(to, 0o755);
        const loader = `${home}/lib/${source.elf.loader}`;
        // RPATH, not RUNPATH: it counts for what its libraries need, too.
        const set = ["--set-interpreter", loader, "--force-rpath", "--set-rpath", source.elf.libraries];
        await run("patchelf", [...set, to]);
      }
    }
    if (!("link" in source)) await chmod(to, source.mode ?? 0o644);
  }
}

/** Makes something once per key. `make` fills a directory that appears under its name only when it is whole. */
async function once(kind: string, key: string, make: (directory: string) => Promise<void>): Promise<string> {
  const path = join(cache, kind, key);
  if (existsSync(path)) return path;
  await mkdir(join(cache, kind), { recursive: true });
  const draft = await mkdtemp(join(cache, kind, ".draft-"));
  try {
    await chmod(draft, 0o755);
    await make(draft);
    await rename(draft, path);
  } catch (error) {
    await rm(draft, { recursive: true, force: true });
    if (!existsSync(path)) throw error;
  }
  return path;
}

/** A layer: its tree, then its tar, compressed, with both digests. */
async function layerOf(name: string, files: Files): Promise<{ layer: Layer; tree: string }> {
  const key = await keyOf(files);
  const tree = await once("trees", key, (directory) => materialize(files, directory));
  const path = await once("layers", key, (directory) =>
    timed(`compress ${name}`, async () => {
      // Sorted, owned by root, from the epoch: the same files make the same digest everywhere.
      const tar = [
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "-C",
        tree,
        "-cf",
      ];
      const archive = join(directory, "layer.tar");
      await run("tar", [...tar, archive, "."]);
      const diff = createHash("sha256");
      const blob = createHash("sha256");
      let size = 0;
      const tap = (hash: ReturnType<typeof createHash>, count = false): Transform =>
        new Transform({
          transform(chunk: Buffer, _, done) {
            hash.update(chunk);
            if (count) size += chunk.length;
            done(null, chunk);
          },
        });
      const zipped = join(directory, "layer.tar.gz");
      await pipeline(
        createReadStream(archive, { highWaterMark: 1 << 20 }),
        tap(diff),
        createGzip({ level: 2 }),
        tap(blob, true),
        createWriteStream(zipped),
      );
      await rm(archive);
      const layer = { digest: `sha256:${blob.digest("hex")}`, size, diffId: `sha256:${diff.digest("hex")}` };
      await writeFile(join(directory, "layer.json"), JSON.stringify(layer));
    }),
  );
  const known = JSON.parse(await readFile(join(path, "layer.json"), "utf8")) as Omit<Layer, "path">;
  return { layer: { ...known, path: join(path, "layer.tar.gz") }, tree };
}

type Config = { entrypoint: string[]; user?: string; env?: string[] };

/** One architecture's image. */
type Built = { architecture: string; layers: Layer[]; config: Config };

/** Writes an OCI image layout (image-spec image-layout.md) of an image, with an index where it is for several architectures. */
async function layoutOf(directory: string, tag: string, images: readonly Built[]): Promise<void> {
  const blobs = join(directory, "blobs/sha256");
  await mkdir(blobs, { recursive: true });
  const put = async (value: unknown): Promise<{ digest: string; size: number }> => {
    const text = JSON.stringify(value);
    await writeFile(join(blobs, sha256(text)), text);
    return { digest: `sha256:${sha256(text)}`, size: Buffer.byteLength(text) };
  };
  const types = {
    index: "application/vnd.oci.image.index.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
  };
  const manifests = [];
  for (const { architecture, layers, config } of images) {
    for (const layer of layers) {
      const to = join(blobs, layer.digest.slice("sha256:".length));
      // The layout lies beside the cache: a link costs nothing.
      if (!existsSync(to)) await run("cp", ["--link", "--force", layer.path, to]);
    }
    const image = await put({
      architecture,
      os: "linux",
      config: {
        Entrypoint: config.entrypoint,
        ...(config.user === undefined ? {} : { User: config.user }),
        Env: ["PATH=/bin:/bundle/bin", "NODE_ENV=production", ...(config.env ?? [])],
        WorkingDir: "/",
        Labels: {
          "org.opencontainers.image.title": "bulkhead",
          "org.opencontainers.image.licenses": "Apache-2.0",
        },
      },
      rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) },
      history: layers.map(() => ({ created_by: "images/build.ts" })),
    });
    const described = await put({
      schemaVersion: 2,
      mediaType: types.manifest,
      config: { mediaType: "application/vnd.oci.image.config.v1+json", ...image },
      layers: layers.map(({ digest, size }) => ({
        mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
        digest,
        size,
      })),
    });
    manifests.push({ mediaType: types.manifest, ...described, platform: { os: "linux", architecture } });
  }
  const [first] = manifests;
  const { platform: _, ...only } = first!;
  const top =
    manifests.length === 1
      ? only
      : { mediaType: types.index, ...(await put({ schemaVersion: 2, mediaType: types.index, manifests })) };
  await writeFile(join(directory, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  const annotations = { "org.opencontainers.image.ref.name": tag };
  await writeFile(
    join(directory, "index.json"),
    JSON.stringify({ schemaVersion: 2, mediaType: types.index, manifests: [{ ...top, annotations }] }),
  );
}

/** All files below a directory as files of an image. */
async function below(
  directory: string,
  at: string,
  wanted: (path: string) => boolean = () => true,
): Promise<Files> {
  const files: Files = {};
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const name = relative(directory, path);
    if (entry.isFile() && wanted(name)) files[join(at, name)] = { from: path };
  }
  return files;
}

/** The canary's image: busybox, as an OCI layout that the runtime takes as a mirror. */
async function canaryOf({ architecture, busybox }: Parts): Promise<Files> {
  const applets = ["sh", "sleep", "cat", "uname", "readlink", "printf", "true", "dmesg", "head"];
  const { layer } = await layerOf("canary", {
    "bin/busybox": { from: busybox, mode: 0o755 },
    ...Object.fromEntries(applets.map((name) => [`bin/${name}`, { link: "busybox" }])),
    "etc/passwd": { text: "root:x:0:0:root:/:/bin/sh\n" },
  });
  const layout = await once("canaries", layer.digest.slice(7, 39), async (directory) => {
    await layoutOf(directory, "1", [
      { architecture, layers: [layer], config: { entrypoint: ["/bin/sleep", "3600"] } },
    ]);
  });
  return below(layout, "bundle/canary");
}

/** A program of ours that is one file of C, static. */
async function compiled(path: string, cc: string): Promise<string> {
  const source = join(repository, path);
  const key = sha256(`${cc}\n${await readFile(source, "utf8")}`).slice(0, 32);
  const made = await once("programs", key, async (directory) => {
    await run(cc, ["-Os", "-static", "-o", join(directory, "program"), source]);
  });
  return join(made, "program");
}

/** The manifest by which the agent verifies what it installs. */
async function manifestOf(trees: string[], release: string): Promise<string> {
  type Entry =
    | { kind: "file"; path: string; sha256: string; size: number; mode: number }
    | { kind: "link"; path: string; target: string };
  const files: Entry[] = [];
  for (const tree of trees) {
    const root = join(tree, "bundle");
    for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
      const at = join(entry.parentPath, entry.name);
      const path = relative(root, at);
      if (entry.isSymbolicLink()) files.push({ kind: "link", path, target: await readlink(at) });
      if (!entry.isFile()) continue;
      const stat = await lstat(at);
      files.push({
        kind: "file",
        path,
        sha256: await digestOf(at),
        size: stat.size,
        mode: stat.mode & 0o7777,
      });
    }
  }
  files.sort((a, b) => (a.path < b.path ? -1 : 1));
  const version = `${release}-${sha256(JSON.stringify(files)).slice(0, 12)}`;
  return JSON.stringify({ version, files }, undefined, 1);
}

/** Digest of a file of the cache, remembered beside it: trees never change. */
async function digestOf(path: string): Promise<string> {
  const memory = join(cache, "digests", sha256(path));
  if (existsSync(memory)) return readFile(memory, "utf8");
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  const digest = hash.digest("hex");
  await mkdir(dirname(memory), { recursive: true });
  await writeFile(memory, digest);
  return digest;
}

async function push(name: string, layout: string, registry: string): Promise<string> {
  const target = `${registry}/bulkhead/${name}:${values.tag}`;
  const tls = values.insecure ? ["--dest-tls-verify=false"] : [];
  await run("skopeo", [
    "copy",
    "--quiet",
    "--all",
    "--insecure-policy",
    "--preserve-digests",
    ...tls,
    `oci:${layout}:${values.tag}`,
    `docker://${target}`,
  ]);
  return target;
}

async function main(): Promise<void> {
  if (values.help || values.registry === undefined) {
    process.stderr.write(`Usage: ${usage}\n`);
    process.exitCode = values.help ? 0 : 2;
    return;
  }
  const { registry } = values;
  const manifest = JSON.parse(await readFile(join(repository, "package.json"), "utf8")) as {
    version: string;
  };
  const release = values.release ?? manifest.version;
  const all = await Promise.all([...new Set(values.arch)].map((name) => partsFor(name, values.cache)));
  const scratch = await mkdtemp(join(tmpdir(), "bulkhead-images-"));
  try {
    const bundles = await timed("bundle programs", () => bundlesOf(scratch, release));
    const built: Record<Name, Built[]> = { operator: [], "node-agent": [] };
    for (const parts of all) {
      const { architecture } = parts;
      const base = await baseOf(parts);
      if (values.only !== "node-agent")
        built.operator.push({ architecture, ...(await operatorOf(base, bundles)) });
      if (values.only !== "operator")
        built["node-agent"].push({ architecture, ...(await agentOf(base, parts, bundles, release)) });
    }
    // One after the other: the second finds the first one's base layer in the registry.
    for (const name of names) {
      const images = built[name];
      if (images.length === 0) continue;
      const key = sha256(JSON.stringify([images, values.tag])).slice(0, 32);
      const layout = await once("layouts", key, (directory) => layoutOf(directory, values.tag, images));
      const target = await timed(`push ${name}`, () => push(name, layout, registry));
      process.stdout.write(`${target}\n`);
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

const names = ["operator", "node-agent"] as const;
type Name = (typeof names)[number];
type Bundles = { operator: Files; agent: Files; runtime: Files };

/** Our programs, the same for every architecture. They come as text: made anew with the same content they are the same layer. */
async function bundlesOf(scratch: string, release: string): Promise<Bundles> {
  const made = async (name: string, at: string, entries: Record<string, string>): Promise<Files> => {
    const directory = join(scratch, name);
    await bundle(entries, directory, release);
    const pairs = (await readdir(directory)).map(
      async (file) => [join(at, file), { text: await readFile(join(directory, file), "utf8") }] as const,
    );
    return Object.fromEntries(await Promise.all(pairs));
  };
  const wants = (name: Name): boolean => (values.only ?? name) === name;
  const [operator, agent, runtime] = await Promise.all([
    wants("operator") ? made("operator", "app", { operator: "operator/src/main.ts" }) : {},
    wants("node-agent")
      ? made("agent", "app", {
          reporter: "node-agent/src/reporter/main.ts",
          installer: "node-agent/src/installer/main.ts",
          uninstall: "node-agent/src/uninstall/main.ts",
        })
      : {},
    wants("node-agent")
      ? made("runtime", "bundle/runtime", {
          main: "runtime/src/main.ts",
          ...(await workersOf("runtime/src")),
        })
      : {},
  ]);
  return { operator, agent, runtime };
}

type Base = Awaited<ReturnType<typeof layerOf>>;

/** Node and the libraries of all programs that have any. */
async function baseOf(parts: Parts): Promise<Base> {
  const { node, conmon, crun } = parts;
  const libraries = await librariesOf([node, conmon, crun], parts);
  const authorities = "/etc/ssl/certs/ca-certificates.crt";
  return layerOf("base", {
    "bundle/bin/node": {
      from: node,
      mode: 0o755,
      elf: { libraries: "$ORIGIN/../lib", loader: parts.loader },
    },
    ...Object.fromEntries(
      [...libraries].map(([name, from]) => [`bundle/lib/${name}`, { from, mode: 0o755 }] as const),
    ),
    [home.slice(1)]: { link: "/bundle" },
    "etc/passwd": { text: "root:x:0:0:root:/:/\nbulkhead:x:65532:65532:bulkhead:/:/\n" },
    "etc/group": { text: "root:x:0:\nbulkhead:x:65532:\n" },
    "etc/nsswitch.conf": { text: "hosts: files dns\n" },
    ...(existsSync(authorities) ? { "etc/ssl/certs/ca-certificates.crt": { from: authorities } } : {}),
  });
}

const entry = (program: string, flags: string[] = []): string[] => [
  "/bundle/bin/node",
  ...flags,
  `/app/${program}.mjs`,
];

async function operatorOf(base: Base, { operator }: Bundles): Promise<Omit<Built, "architecture">> {
  const { layer } = await layerOf("operator", operator);
  return {
    layers: [base.layer, layer],
    config: {
      entrypoint: entry("operator", operatorFlags),
      user: "65532:65532",
      env: Object.entries(operatorEnvironment).map((each) => each.join("=")),
    },
  };
}

async function agentOf(
  base: Base,
  parts: Parts,
  bundles: Bundles,
  release: string,
): Promise<Omit<Built, "architecture">> {
  const { loader, koffi, cc } = parts;
  const own = (name: string): string => {
    const path = join(parts.bin, name);
    if (!existsSync(path))
      throw new Error(`Cannot find "${path}": build the pinned programs first (./dev does)`);
    return path;
  };
  const walls = await layerOf("walls", {
    "bundle/bin/conmon": { from: parts.conmon, mode: 0o755, elf: { libraries: "$ORIGIN/../lib", loader } },
    "bundle/bin/runc": { from: own("runc"), mode: 0o755 },
    // It goes on as a sealed copy of itself in memory, which has no directory to look beside.
    "bundle/bin/crun": { from: parts.crun, mode: 0o755, elf: { libraries: `${home}/lib`, loader } },
    "bundle/bin/runsc": { from: own("runsc"), mode: 0o755 },
    "bundle/bin/containerd-shim-runsc-v1": { from: own("containerd-shim-runsc-v1"), mode: 0o755 },
    ...(await canaryOf(parts)),
    ...(await below(join(repository, "node_modules/koffi"), "bundle/runtime/node_modules/koffi", (path) =>
      /^(package\.json|LICENSE\.txt|(src\/koffi\/)?[a-z]+\.c?js|src\/koffi\/src\/[a-z]+\.c?js)$/.test(path),
    )),
    ...(await below(
      koffi.directory,
      `bundle/runtime/node_modules/${koffi.name}`,
      (path) => !path.startsWith("musl"),
    )),
    "bundle/bin/bulkhead-exec-reaper": {
      from: await compiled("runtime/src/monitor/exec/reaper.c", cc),
      mode: 0o755,
    },
    "bundle/bin/bulkhead-kvm-probe": {
      from: await compiled("node-agent/src/installer/kata/kvm-probe.c", cc),
      mode: 0o755,
    },
    // The agent's own tool to reach the host's namespaces; it stays in the image.
    "bin/busybox": { from: parts.busybox, mode: 0o755 },
  });
  const runtime: Files = {
    ...bundles.runtime,
    // Where the program reads its version.
    "bundle/package.json": {
      text: JSON.stringify({ name: "bulkhead-runtime", version: release, type: "module" }),
    },
  };
  const programs = await once("trees", await keyOf(runtime), (directory) => materialize(runtime, directory));
  const { layer } = await layerOf("node-agent", {
    ...runtime,
    ...bundles.agent,
    "bundle/manifest.json": { text: await manifestOf([base.tree, walls.tree, programs], release) },
  });
  return {
    layers: [base.layer, walls.layer, layer],
    config: { entrypoint: entry("reporter") },
  };
}

await main();
