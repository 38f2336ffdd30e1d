import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, copyFile, lstat, mkdir, readFile, readlink, rename, rm, symlink } from "node:fs/promises";
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

/** What a list says of a file or a link, of the bundle or of an artifact. */
export type ListedFile = Manifest["files"][number];

/**
 * Finds files that are not what a list of digests says. A file is hashed when it is first seen, when its inode says that
 * it was touched, and after `rehashMs` anyway: not every change comes by way of the file system.
 */
export class BundleCheck {
  readonly #seen = new Map<string, { is: string; at: number }>();
  readonly #rehashMs: number;

  constructor(rehashMs = 3_600_000) {
    this.#rehashMs = rehashMs;
  }

  async drifted(
    manifest: { files: readonly ListedFile[] },
    directory: string,
    signal: AbortSignal,
  ): Promise<string[]> {
    const wrong: string[] = [];
    for (const file of manifest.files) {
      signal.throwIfAborted();
      const path = join(directory, file.path);
      if (file.kind === "link") {
        if ((await readlink(path).catch(() => undefined)) !== file.target) wrong.push(file.path);
        continue;
      }
      const now = await stamp(path);
      const is = `${file.sha256} ${now}`;
      const seen = this.#seen.get(path);
      if (now !== undefined && seen?.is === is && performance.now() - seen.at < this.#rehashMs) continue;
      this.#seen.delete(path);
      const stat = await lstat(path).catch(() => undefined);
      const right =
        stat?.isFile() === true &&
        stat.size === file.size &&
        (stat.mode & 0o7777) === file.mode &&
        (await digestOf(path)) === file.sha256;
      if (right) this.#seen.set(path, { is, at: performance.now() });
      else wrong.push(file.path);
    }
    return wrong;
  }

  /** Forgets what was seen below a directory that is gone. */
  forget(directory: string): void {
    for (const path of this.#seen.keys()) if (path.startsWith(`${directory}/`)) this.#seen.delete(path);
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
