import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "./cache.ts";
import { run } from "./run.ts";

/** Which Debian package a program that is never installed comes from. */
export const debianPrograms = {
  etcd: { pkg: "etcd-server", path: "usr/bin/etcd" },
  "docker-registry": { pkg: "docker-registry", path: "usr/bin/docker-registry" },
  tinyproxy: { pkg: "tinyproxy-bin", path: "usr/bin/tinyproxy" },
  /** Shims of the version that Debian 12 has. */
  "containerd-1.6": { pkg: "containerd", path: "usr/bin/containerd-shim-runc-v2" },
  prometheus: { pkg: "prometheus", path: "usr/bin/prometheus" },
  promtool: { pkg: "prometheus", path: "usr/bin/promtool" },
} as const;

/**
 * A file of a Debian package, unpacked into the cache instead of installed: installing would start the package's
 * service. Downloads it the first time.
 */
export const debianProgram = async (pkg: string, path: string, signal?: AbortSignal): Promise<string> => {
  const home = inCache("debian", pkg);
  const program = join(home, path);
  if (existsSync(program)) return program;
  await mkdir(inCache("debian"), { recursive: true });
  const scratch = await mkdtemp(inCache("debian", ".new-"));
  try {
    // apt drops to the user _apt, who cannot write here: it says so and goes on as root.
    await run(["apt-get", "download", "-q", pkg], { cwd: scratch, signal });
    const archive = (await readdir(scratch)).find((name) => name.endsWith(".deb"));
    if (archive === undefined) throw new RuntimeError("not-found", `Cannot find package "${pkg}" in apt`);
    await run(["dpkg-deb", "-x", join(scratch, archive), join(scratch, "tree")], { signal });
    if (!existsSync(join(scratch, "tree", path)))
      throw new RuntimeError("not-found", `Cannot find "${path}" in Debian package "${pkg}"`);
    // Whoever was first wins: both hold the same files.
    await rename(join(scratch, "tree"), home).catch((error: NodeJS.ErrnoException) => {
      if (!existsSync(program)) throw error;
    });
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return program;
};
