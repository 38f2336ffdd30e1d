import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { blobOf, descriptorOf, digestOf, pushBlob, pushManifest } from "../images/push.ts";
import { tarOf } from "../images/tar.ts";
import { run } from "../tools/run.ts";

type Image = { config: { digest: string }; layers: { digest: string }[] };
type Config = { rootfs: { diff_ids: string[] }; history: object[] };
type Bundle = { version: string; files: { path: string; sha256?: string; size?: number }[] };

/**
 * Pushes the node agent's image of this tag once more, with a runtime in its bundle that ends at once. All else of it is
 * right, the list of the bundle's digests too. Returns the image's digest.
 */
export const pushFailing = async (registry: string, tag: string, scratch: string): Promise<string> => {
  const target = { url: `http://${registry}`, repository: "bulkhead/node-agent" };
  const get = async (path: string): Promise<Response> => {
    const answer = await fetch(`${target.url}/v2/${target.repository}/${path}`, {
      headers: { accept: "application/vnd.oci.image.manifest.v1+json, */*" },
    });
    if (!answer.ok) throw new Error(`Cannot get ${path}: the registry answered ${answer.status}`);
    return answer;
  };
  const image = (await (await get(`manifests/${tag}`)).json()) as Image;
  const config = (await (await get(`blobs/${image.config.digest}`)).json()) as Config;
  // Our own programs and the list of the bundle's files are the last layer.
  const last = join(scratch, "last.tar.gz");
  await writeFile(last, Buffer.from(await (await get(`blobs/${image.layers.at(-1)!.digest}`)).arrayBuffer()));
  const bundle = JSON.parse(await run(["tar", "-xzOf", last, "./bundle/manifest.json"])) as Bundle;

  const program = 'console.error("this version does not start");\nprocess.exit(1);\n';
  const files = bundle.files.map((file) =>
    file.path === "runtime/main.mjs"
      ? { ...file, size: program.length, sha256: createHash("sha256").update(program).digest("hex") }
      : file,
  );
  const tar = tarOf([
    { path: "bundle/runtime/main.mjs", type: "file", data: program },
    {
      path: "bundle/manifest.json",
      type: "file",
      data: JSON.stringify({ version: `${bundle.version}-failing`, files }),
    },
  ]);
  const layer = blobOf("application/vnd.oci.image.layer.v1.tar+gzip", gzipSync(tar));
  const changed = blobOf("application/vnd.oci.image.config.v1+json", {
    ...config,
    rootfs: { ...config.rootfs, diff_ids: [...config.rootfs.diff_ids, digestOf(tar)] },
    history: [...config.history, { created_by: "test/chart/failing.ts" }],
  });
  const manifest = blobOf("application/vnd.oci.image.manifest.v1+json", {
    ...image,
    config: descriptorOf(changed),
    layers: [...image.layers, descriptorOf(layer)],
  });
  for (const blob of [layer, changed]) await pushBlob(target, blob);
  await pushManifest(target, `${tag}-failing`, manifest);
  return manifest.digest;
};
