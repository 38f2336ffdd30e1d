import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, copyFile, lstat, mkdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { z } from "zod";

/** The bundle: everything that the agent's image brings for the host, named file by file in manifest.json. */

const relative = z
  .string()
  .regex(/^(?!\/)(?!.*(^|\/)\.\.?(\/|$))[A-Za-z0-9._+@/-]+$/, "must be a relative path");

export const Manifest = z
  .object({
    /** Directory below /opt/bulkhead/versions: the release and a hash of the files. */
    version: z.string().regex(/^[0-9A-Za-z.-]+$/),
    files: z.array(
      z.discriminatedUnion("kind", [
        z.object({
          kind: z.literal("file"),
          path: relative,
          sha256: z.string().regex(/^[0-9a-f]{64}$/),
          size: z.int(),
          mode: z.int(),
        }),
        z.object({ kind: z.literal("link"), path: relative, target: relative }),
      ]),
    ),
  })
  .strict();
export type Manifest = z.infer<typeof Manifest>;

export async function readManifest(directory: string): Promise<Manifest> {
  const path = join(directory, "manifest.json");
  try {
    return Manifest.parse(JSON.parse(await readFile(path, "utf8")));
  } catch (error) {
    throw new RuntimeError(
      "failed-precondition",
      `Cannot read the bundle's manifest "${path}": ${messageOf(error)}`,
      {
        cause: error,
      },
    );
  }
}

export async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/** What identifies a file's content without reading it. */
const stamp = async (path: string): Promise<string | undefined> => {
  const stat = await lstat(path).catch(() => undefined);
  return stat && `${stat.ino} ${stat.size} ${stat.mtimeMs} ${stat.ctimeMs} ${stat.mode & 0o7777}`;
};

/**
 * Finds files of a staged version that are not what the manifest says. A file is hashed once; after that only when
 * its inode says that it was touched.
 */
export class BundleCheck {
  readonly #seen = new Map<string, string>();

  async drifted(manifest: Manifest, directory: string, signal: AbortSignal): Promise<string[]> {
    const wrong: string[] = [];
    for (const file of manifest.files) {
      signal.throwIfAborted();
      if (file.kind === "link") continue;
      const path = join(directory, file.path);
      const now = await stamp(path);
      if (now !== undefined && this.#seen.get(path) === `${file.sha256} ${now}`) continue;
      const stat = await lstat(path).catch(() => undefined);
      const right =
        stat?.isFile() === true &&
        stat.size === file.size &&
        (stat.mode & 0o7777) === file.mode &&
        (await digestOf(path)) === file.sha256;
      if (right) this.#seen.set(path, `${file.sha256} ${now}`);
      else wrong.push(file.path);
    }
    return wrong;
  }
}

/** Copies the bundle's files to `directory`, those that are wrong there, and checks each digest on the way. */
export async function stageBundle(
  manifest: Manifest,
  bundle: string,
  directory: string,
  wrong: ReadonlySet<string>,
  signal: AbortSignal,
): Promise<void> {
  for (const file of manifest.files) {
    signal.throwIfAborted();
    const to = join(directory, file.path);
    await mkdir(dirname(to), { recursive: true });
    const temporary = `${to}.bulkhead-new`;
    await rm(temporary, { force: true });
    if (file.kind === "link") {
      await symlink(file.target, temporary);
    } else {
      if (!wrong.has(file.path)) continue;
      await copyFile(join(bundle, file.path), temporary);
      const digest = await digestOf(temporary);
      if (digest !== file.sha256) {
        await rm(temporary, { force: true });
        throw new RuntimeError(
          "failed-precondition",
          `Cannot install "${file.path}": its digest is sha256:${digest}, the manifest says sha256:${file.sha256}`,
        );
      }
      await chmod(temporary, file.mode);
    }
    // A program that runs is replaced by name: its old inode lives as long as the process does.
    await rename(temporary, to);
  }
}
