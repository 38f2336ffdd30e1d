import { mkdir, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { bundle, workersOf } from "../../images/bundle.ts";
import { run } from "../tools/run.ts";

const repository = new URL("../..", import.meta.url).pathname;

/**
 * The runtime in `dir` as the agent installs it, bundled and with its programs beside it: unbundled source takes
 * twice the memory, and changes under a long run. Returns the path of its main file.
 */
export const bundledRuntime = async (dir: string): Promise<string> => {
  await bundle({ main: "runtime/src/main.ts", ...(await workersOf("runtime/src")) }, join(dir, "runtime"));
  for (const [from, to] of [
    ["runtime/package.json", "package.json"],
    ["node_modules", "node_modules"],
  ] as const)
    await symlink(join(repository, from), join(dir, to));
  const reaper = join(dir, "bin/bulkhead-exec-reaper");
  await mkdir(dirname(reaper));
  await run(["cc", "-Os", "-static", "-o", reaper, join(repository, "runtime/src/monitor/exec/reaper.c")]);
  return join(dir, "runtime/main.mjs");
};
