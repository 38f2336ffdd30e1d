import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { ArtifactManifest } from "@bulkhead/lib/api/artifact-manifest.ts";
import type { BundleCheck } from "../bundle.ts";

/** More names help nobody, and go into messages. */
const namedMost = 100;

/**
 * What of an artifact is not as it was fetched: files that were changed, that are gone, or that nobody listed; at most
 * a hundred. `list`: the digest of its manifest.json as it was written.
 */
export async function changedFiles(
  directory: string,
  list: string,
  check: BundleCheck,
  signal: AbortSignal,
): Promise<string[]> {
  const bytes = await readFile(join(directory, "manifest.json")).catch(() => undefined);
  // The list itself cannot be believed then, so nothing can.
  if (bytes === undefined || `sha256:${createHash("sha256").update(bytes).digest("hex")}` !== list)
    return ["manifest.json"];
  const { success, data: manifest } = ArtifactManifest.safeParse(JSON.parse(bytes.toString()));
  // Of a version of ours that writes another list: fetched anew it can be read.
  if (!success) return ["manifest.json"];
  const root = join(directory, "root");
  const strange = await unlisted(root, manifest);
  return [...(await check.drifted(manifest, root, signal)), ...strange].slice(0, namedMost);
}

/** What stands in an artifact that its list does not know. */
async function unlisted(root: string, { files }: ArtifactManifest): Promise<string[]> {
  const known = new Set(files.map(({ path }) => path));
  const folders = new Set<string>();
  for (const { path } of files)
    for (let slash = path.indexOf("/"); slash > 0; slash = path.indexOf("/", slash + 1))
      folders.add(path.slice(0, slash));
  const strange: string[] = [];
  const todo = [""];
  for (let at = todo.pop(); at !== undefined && strange.length < namedMost; at = todo.pop()) {
    for (const entry of await readdir(join(root, at), { withFileTypes: true }).catch(() => [])) {
      const path = at === "" ? entry.name : `${at}/${entry.name}`;
      if (entry.isDirectory() && folders.has(path)) todo.push(path);
      else if (!known.has(path)) strange.push(path);
    }
  }
  return strange;
}
