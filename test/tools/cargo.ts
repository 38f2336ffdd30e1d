import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { inCache, tool } from "./cache.ts";
import { place } from "./go.ts";
import type { CrateBuild } from "./plan.ts";
import { outcome, run } from "./run.ts";

/**
 * Builds a program in Rust, of a crate or of a folder of test/tools that pins crates. Hardly optimized: each
 * takes minutes as it is.
 */
export const buildCrate = async (build: CrateBuild, signal?: AbortSignal): Promise<void> => {
  const { output } = build;
  const home = inCache("tools", `${output}-${await keyOf(build)}`);
  if (!existsSync(home)) {
    if ((await outcome(["cargo", "--version"]).catch(() => undefined))?.code !== 0)
      throw new Error("cargo is not there");
    await mkdir(inCache("tools"), { recursive: true });
    const scratch = await mkdtemp(inCache("tools", ".new-"));
    try {
      await run(
        [
          ...["cargo", "install", "--locked", "--quiet", "--root", join(scratch, "out"), "--bin", output],
          ...("folder" in build
            ? ["--path", folderOf(build.folder)]
            : [build.crate, "--version", build.version]),
          ...(build.features === undefined
            ? []
            : ["--no-default-features", "--features", build.features.join(",")]),
        ],
        {
          signal,
          env: {
            CARGO_TARGET_DIR: join(scratch, "target"),
            CARGO_PROFILE_RELEASE_OPT_LEVEL: build.optimized ? "1" : "0",
            CARGO_PROFILE_RELEASE_STRIP: "true",
            CARGO_PROFILE_RELEASE_LTO: "off",
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS: "16",
          },
        },
      );
      await rename(join(scratch, "out/bin"), home).catch((error: unknown) => {
        if (!existsSync(home)) throw error;
      });
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  }
  await place(join(home, output), inCache("bin", output));
};

/** Whether a program in Rust is there; where not, the test that wants it says so and is left out. */
export const built = (program: string): boolean => {
  if (existsSync(tool(program))) return true;
  console.log(`skipped: ${program} was not built (\`./dev tools\` does, where there is Rust)`);
  return false;
};

const folderOf = (name: string): string => join(import.meta.dirname, name);

/** What another program is made of. */
const keyOf = async (build: CrateBuild): Promise<string> => {
  if ("version" in build) return build.version;
  const files = ["Cargo.toml", "Cargo.lock", "src/main.rs"].map((file) => join(folderOf(build.folder), file));
  const hash = createHash("sha256");
  for (const file of files) hash.update(await readFile(file));
  return hash.digest("hex").slice(0, 16);
};
