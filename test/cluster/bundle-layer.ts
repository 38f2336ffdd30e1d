import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { run } from "../tools/run.ts";
import { type ClusterPlan, registryHost } from "./plan.ts";
import { pushImages } from "./push-images.ts";

type Manifest = { layers: { digest: string }[] };

/** By cluster: its nodes boot side by side and stand on one. */
const making = new Map<string, Promise<string>>();

/**
 * A layer for the root filesystem of nodes: the bundle of the agent's image as the agent lays it out on a node, at
 * /opt/bulkhead/current. Built from the present source, pushed, pulled and unpacked; once for each content.
 */
export const bundleLayer = (plan: ClusterPlan, signal: AbortSignal): Promise<string> => {
  const known = making.get(plan.name);
  if (known !== undefined) return known;
  const made = makeLayer(plan, signal).finally(() => making.delete(plan.name));
  making.set(plan.name, made);
  return made;
};

const makeLayer = async (plan: ClusterPlan, signal: AbortSignal): Promise<string> => {
  const tag = await pushImages(registryHost(plan), signal);
  const url = `http://${registryHost(plan)}/v2/bulkhead/node-agent`;
  const { layers } = (await (await ask(`${url}/manifests/${tag}`, signal)).json()) as Manifest;
  const key = createHash("sha256").update(JSON.stringify(layers)).digest("hex").slice(0, 16);
  const home = join(plan.disk, "bundles", key);
  if (existsSync(home)) return home;
  await mkdir(join(plan.disk, "bundles"), { recursive: true });
  const scratch = await mkdtemp(join(plan.disk, "bundles/.new-"));
  try {
    const current = join(scratch, "tree", paths.opt, "current");
    await mkdir(current, { recursive: true });
    for (const { digest } of layers) {
      const blob = join(scratch, "layer.tar.gz");
      await writeFile(blob, Buffer.from(await (await ask(`${url}/blobs/${digest}`, signal)).arrayBuffer()));
      // Every layer of that image has a part of the bundle.
      await run(["tar", "-xzf", blob, "-C", current, "--strip-components=2", "./bundle"], { signal });
    }
    // Whoever was first wins: both made the same.
    await rename(join(scratch, "tree"), home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return home;
};

const ask = async (url: string, signal: AbortSignal): Promise<Response> => {
  const answer = await fetch(url, {
    signal,
    headers: { accept: "application/vnd.oci.image.manifest.v1+json, */*" },
  });
  if (answer.ok) return answer;
  throw new RuntimeError("unavailable", `Cannot get ${url}: the registry answered ${answer.status}`);
};
