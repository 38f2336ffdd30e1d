import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { bundlePlugin } from "../../images/bundle.ts";
import { completionScript } from "../../kubectl/src/completion.ts";

/** Puts the kubectl plugin, and what completes its words, into a directory; returns the plugin's path. */
export const writePlugin = async (directory: string): Promise<string> => {
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, "kubectl_complete-bulkhead"), completionScript, { mode: 0o755 });
  return bundlePlugin(directory);
};
