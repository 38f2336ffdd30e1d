import { spawn } from "node:child_process";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { inCache, tool } from "../tools/cache.ts";
import { runtimeDown, runtimeRecord, runtimeUp } from "./runtime.ts";

/** Registries that critest names in its images: the runtime asks ours before them. */
const hosts = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];

/**
 * Runs critest (sigs.k8s.io/cri-tools) with the given flags, against the daemon of `./dev runtime up` if it runs,
 * else against one for this run only. The images come from a registry of our own either way. Returns its exit code.
 */
export const critest = async (args: readonly string[], signal: AbortSignal): Promise<number> => {
  await using undo = new AsyncDisposableStack();
  let record = await runtimeRecord();
  if (record === undefined) {
    const registry = undo.use(await startRegistry({ dir: inCache("critest"), address: "127.0.0.1" }));
    await ensureTestImages(registry.url);
    undo.defer(async () => void (await runtimeDown()));
    record = await runtimeUp({ mirror: hosts.map((host) => `${host}=${registry.url}`) }, signal);
  }
  const endpoint = `unix://${record.socket}`;
  return await new Promise<number>((resolve, reject) => {
    const flags = ["--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--ginkgo.no-color"];
    spawn(tool("critest"), [...flags, ...args], { stdio: "inherit", signal })
      .on("error", reject)
      .on("close", (code) => resolve(code ?? 1));
  });
};
