import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inCache } from "./cache.ts";
import { run } from "./run.ts";

/**
 * Packages of Debian 13 for tests on Debian 12, unpacked into a directory of the cache unless they are there; nothing
 * is installed. `finish` has the tree before it gets its name.
 */
export const fetchTrixie = async (
  home: string,
  packages: readonly string[],
  finish: (tree: string) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> => {
  if (existsSync(home)) return;
  await mkdir(inCache("tools"), { recursive: true });
  const scratch = await mkdtemp(inCache("tools", ".new-"));
  try {
    const at = (name: string): string => join(scratch, name);
    for (const name of ["lists/partial", "cache/archives/partial", "tree"])
      await mkdir(at(name), { recursive: true });
    const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    await writeFile(
      at("sources.list"),
      `deb [signed-by=${keyring}] http://deb.debian.org/debian trixie main\n`,
    );
    // Lists of its own: the machine's packages stay what they are.
    const apart = [
      `Dir::Etc::sourcelist=${at("sources.list")}`,
      "Dir::Etc::sourceparts=/dev/null",
      `Dir::State::lists=${at("lists")}`,
      `Dir::Cache=${at("cache")}`,
      "Acquire::Languages=none",
    ].flatMap((option) => ["-o", option]);
    await run(["apt-get", ...apart, "update", "-q"], { signal });
    await run(["apt-get", ...apart, "download", "-q", ...packages], { cwd: scratch, signal });
    for (const name of await readdir(scratch))
      if (name.endsWith(".deb")) await run(["dpkg-deb", "-x", at(name), at("tree")], { signal });
    await rm(at("tree/usr/share"), { recursive: true, force: true });
    await finish(at("tree"));
    await chmod(at("tree"), 0o755);
    await rename(at("tree"), home).catch((error: unknown) => {
      if (!existsSync(home)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
};
