import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { settingsDirectory } from "./files.ts";

/** As much as a ConfigMap or Secret holds. */
const maxBytes = 1 << 20;

/**
 * The files that the runtime's settings name, as Kubernetes projects them into `directory` from a ConfigMap and a Secret:
 * path on the node → text. "": there are none.
 */
export const readNamedFiles = async (directory: string): Promise<Record<string, string>> => {
  if (directory === "") return {};
  const named: Record<string, string> = {};
  for (const name of (await readdir(directory)).sort()) {
    // The kubelet's own: ..data and what it leads to.
    if (name.startsWith("..")) continue;
    const path = join(directory, name);
    const { size } = await stat(path);
    if (size > maxBytes)
      throw new RuntimeError(
        "invalid-argument",
        `Cannot use runtime.files: ${name} is larger than ${maxBytes} bytes`,
      );
    const bytes = await readFile(path);
    const text = bytes.toString();
    if (!Buffer.from(text).equals(bytes))
      throw new RuntimeError("invalid-argument", `Cannot use runtime.files: ${name} is no text`);
    named[join(settingsDirectory, name)] = text;
  }
  return named;
};
