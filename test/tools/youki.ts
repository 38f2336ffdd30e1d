import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "./cache.ts";
import { place } from "./go.ts";
import { outcome, run } from "./run.ts";

const version = "0.7.0";

/**
 * Builds youki, an OCI runtime in Rust, from its crate: 200 seconds of processor time, 370 on a busy machine. Not
 * optimized much, which halves that, and without systemd's bus. Where it cannot be built its tests say so.
 */
export const buildYouki = async (signal?: AbortSignal): Promise<void> => {
  const home = inCache("tools", `youki-${version}`);
  if (!existsSync(home)) {
    if ((await outcome(["cargo", "--version"]).catch(() => undefined))?.code !== 0) return;
    await mkdir(inCache("tools"), { recursive: true });
    const scratch = await mkdtemp(inCache("tools", ".new-"));
    try {
      await run(
        [
          ...["cargo", "install", "youki", "--version", version, "--locked", "--quiet"],
          ...["--no-default-features", "--features", "v1,v2,seccomp", "--root", join(scratch, "out")],
        ],
        {
          signal,
          env: {
            CARGO_TARGET_DIR: join(scratch, "target"),
            CARGO_PROFILE_RELEASE_OPT_LEVEL: "1",
            CARGO_PROFILE_RELEASE_LTO: "off",
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS: "16",
          },
        },
      );
      await rename(join(scratch, "out/bin"), home).catch((error: unknown) => {
        if (!existsSync(home)) throw error;
      });
    } catch (error) {
      signal?.throwIfAborted();
      // Of one test, which says that it is not there: no reason for all others not to run.
      process.stderr.write(`youki was not built: ${messageOf(error)}\n`);
      return;
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  }
  await place(join(home, "youki"), inCache("bin", "youki"));
};
