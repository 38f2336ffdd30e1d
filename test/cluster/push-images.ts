import { createHash } from "node:crypto";
import { join } from "node:path";
import { run } from "../tools/run.ts";

const repository = join(import.meta.dirname, "../..");

/**
 * Builds the images of operator and agent and pushes them to a cluster's registry. Nothing is built or pushed
 * when nothing changed. Returns a tag that names their content, so that an upgrade to the same changes nothing and
 * one to other images starts new pods.
 */
export async function pushImages(
  registry: string,
  signal?: AbortSignal,
  /** The version that they are to be; this tree's when left out. */
  release?: string,
): Promise<string> {
  await run(
    [
      process.execPath,
      join(repository, "images/build.ts"),
      ...["--registry", registry, "--tag", "dev", "--insecure"],
      ...(release === undefined ? [] : ["--release", release]),
    ],
    { signal },
  );
  const manifests = await Promise.all(
    ["operator", "node-agent"].map(async (name) => {
      const url = `http://${registry}/v2/bulkhead/${name}/manifests`;
      const type = "application/vnd.oci.image.manifest.v1+json";
      const answer = await fetch(`${url}/dev`, { headers: { accept: type } });
      return { url, type, body: await answer.text() };
    }),
  );
  const digest = createHash("sha256")
    .update(JSON.stringify(manifests.map(({ body }) => body)))
    .digest("hex");
  const tag = `dev-${digest.slice(0, 12)}`;
  for (const { url, type, body } of manifests) {
    const answer = await fetch(`${url}/${tag}`, { method: "PUT", headers: { "content-type": type }, body });
    if (!answer.ok) throw new Error(`Cannot tag ${url}: the registry answered ${answer.status}`);
  }
  return tag;
}
