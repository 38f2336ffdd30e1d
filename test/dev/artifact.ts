import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import { run } from "../tools/run.ts";

const program = join(import.meta.dirname, "../../images/artifact.ts");

/** What an artifact is built of: gvisor and kata are known by name, anything else is a directory, or ARCH=DIRECTORY. */
export const buildArtifact = async (
  what: readonly string[],
  flags: readonly string[],
  signal: AbortSignal,
): Promise<string> => {
  await using undo = new AsyncDisposableStack();
  const trees: string[] = [];
  for (const each of what) {
    if (each === "gvisor") {
      const tree = await mkdtemp(join(tmpdir(), "bulkhead-gvisor-"));
      undo.defer(() => rm(tree, { recursive: true }));
      await mkdir(join(tree, "bin"));
      for (const name of ["runsc", "containerd-shim-runsc-v1"])
        await copyFile(inCache("bin", name), join(tree, "bin", name));
      trees.push(tree);
    } else trees.push(each === "kata" ? kataRoot() : each);
  }
  return await run([process.execPath, program, ...trees, ...flags], { signal });
};

/** An installation in the layout of Kata's static release. */
const kataRoot = (): string => {
  const root = process.env.KATA_ROOT ?? "/opt/kata";
  if (existsSync(join(root, "share/defaults/kata-containers"))) return root;
  throw new RuntimeError(
    "not-found",
    `Cannot find Kata's static release in "${root}": unpack it there, or say where by KATA_ROOT`,
  );
};
