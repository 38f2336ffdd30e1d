#!/usr/bin/env node
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs, promisify } from "node:util";
import { createGzip } from "node:zlib";

/**
 * Builds the image of an artifact (docs/artifacts.md) from a directory, or from one for each architecture, and pushes it:
 *
 *   node images/artifact.ts DIRECTORY [ARCH=DIRECTORY …] (--registry HOST[:PORT] --name NAME | --layout DIRECTORY)
 *
 * The directory is the artifact's root: programs in bin/. The same files make the same digest everywhere. The last line
 * it prints is the reference by digest.
 */

const run = promisify(execFile);
const usage =
  "node images/artifact.ts DIRECTORY [ARCH=DIRECTORY …] [--layout DIRECTORY] [--registry HOST[:PORT] --name NAME] [--tag T] [--insecure]";
const types = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

type Descriptor = { mediaType: string; digest: string; size: number };
const sha256 = (bytes: string): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

/** Writes blobs of an OCI image layout (image-spec image-layout.md). */
const blobsIn = (layout: string) => ({
  json: async (mediaType: string, value: unknown): Promise<Descriptor> => {
    const text = JSON.stringify(value);
    const digest = sha256(text);
    await writeFile(join(layout, "blobs/sha256", digest.slice(7)), text);
    return { mediaType, digest, size: Buffer.byteLength(text) };
  },
  layer: async (tree: string): Promise<{ descriptor: Descriptor; diffId: string }> => {
    const scratch = join(layout, "layer");
    // Sorted, owned by root, from the epoch, without attributes.
    const same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=pax"];
    const bare = ["--pax-option=exthdr.name=%d/pax/%f,delete=atime,delete=ctime,delete=mtime"];
    await run("tar", [...same, ...bare, "-C", tree, "-cf", scratch, "."]);
    const [content, blob] = [createHash("sha256"), createHash("sha256")];
    let size = 0;
    const into = (hash: ReturnType<typeof createHash>, count: (bytes: number) => void): Transform =>
      new Transform({
        transform(chunk: Buffer, _, done) {
          hash.update(chunk);
          count(chunk.length);
          done(null, chunk);
        },
      });
    await pipeline(
      createReadStream(scratch, { highWaterMark: 1 << 20 }),
      into(content, () => {}),
      createGzip({ level: 6 }),
      into(blob, (bytes) => {
        size += bytes;
      }),
      createWriteStream(`${scratch}.gz`),
    );
    await rm(scratch);
    const hex = blob.digest("hex");
    await rename(`${scratch}.gz`, join(layout, "blobs/sha256", hex));
    return {
      descriptor: { mediaType: types.layer, digest: `sha256:${hex}`, size },
      diffId: `sha256:${content.digest("hex")}`,
    };
  },
});

/** Writes an image layout of the trees, an index of them where they are several. Returns the digest that names it. */
async function build(trees: ReadonlyMap<string, string>, layout: string, tag: string): Promise<string> {
  await mkdir(join(layout, "blobs/sha256"), { recursive: true });
  const blobs = blobsIn(layout);
  const manifests: (Descriptor & { platform: { os: string; architecture: string } })[] = [];
  for (const [architecture, tree] of trees) {
    const names = await readdir(tree);
    if (names.length === 0) throw new Error(`Cannot build an artifact of "${tree}": nothing is in it`);
    const { descriptor, diffId } = await blobs.layer(tree);
    const rootfs = { type: "layers", diff_ids: [diffId] };
    const config = await blobs.json(types.config, { architecture, os: "linux", config: {}, rootfs });
    const manifest = { schemaVersion: 2, mediaType: types.manifest, config, layers: [descriptor] };
    manifests.push({
      ...(await blobs.json(types.manifest, manifest)),
      platform: { os: "linux", architecture },
    });
  }
  const [only] = manifests;
  const top =
    only !== undefined && manifests.length === 1
      ? { mediaType: only.mediaType, digest: only.digest, size: only.size }
      : await blobs.json(types.index, { schemaVersion: 2, mediaType: types.index, manifests });
  await writeFile(join(layout, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  const annotations = { "org.opencontainers.image.ref.name": tag };
  const index = { schemaVersion: 2, mediaType: types.index, manifests: [{ ...top, annotations }] };
  await writeFile(join(layout, "index.json"), JSON.stringify(index));
  return top.digest;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      layout: { type: "string" },
      registry: { type: "string" },
      name: { type: "string" },
      tag: { type: "string", default: "latest" },
      insecure: { type: "boolean", default: false },
    },
  });
  const { layout, registry, name, tag, insecure } = values;
  const there = registry !== undefined && name !== undefined;
  if (positionals.length === 0 || (!there && layout === undefined)) {
    process.stderr.write(`Usage: ${usage}\n`);
    process.exitCode = 2;
    return;
  }
  const here = process.arch === "x64" ? "amd64" : process.arch;
  const trees = new Map(
    positionals.map((text): [string, string] => {
      const [, architecture = here, tree = text] = /^([a-z0-9]+)=(.+)$/.exec(text) ?? [];
      return [architecture, tree];
    }),
  );
  for (const tree of trees.values())
    if (!(await stat(tree)).isDirectory()) throw new Error(`"${tree}" is no directory`);
  const scratch = await mkdtemp(join(tmpdir(), "bulkhead-artifact-"));
  try {
    const to = layout ?? scratch;
    const digest = await build(trees, to, tag);
    if (!there) {
      process.stdout.write(`${digest}\n`);
      return;
    }
    const tls = insecure ? ["--dest-tls-verify=false"] : [];
    const target = `docker://${registry}/${name}:${tag}`;
    const flags = ["--quiet", "--insecure-policy", "--preserve-digests", "--all", ...tls];
    await run("skopeo", ["copy", ...flags, `oci:${to}:${tag}`, target]);
    process.stdout.write(`${registry}/${name}@${digest}\n`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

await main();
