import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { inCache } from "../tools/cache.ts";
import { debianProgram } from "../tools/debian.ts";
import { run } from "../tools/run.ts";

/** A kernel of Debian: its image, and its modules as `/lib/modules` has them. */
export type Kernel = { version: string; image: string; modules: string };

/** Debian's cloud kernel of the day, unpacked into the cache. */
export const debianKernel = async (signal?: AbortSignal): Promise<Kernel> => {
  const depends = await run(["apt-cache", "depends", "linux-image-cloud-amd64"], { signal });
  const version = /Depends: linux-image-(\S+-cloud-amd64)/.exec(depends)?.[1];
  if (version === undefined)
    throw new RuntimeError("not-found", "Cannot find the kernel that linux-image-cloud-amd64 depends on");
  const pkg = `linux-image-${version}`;
  const image = await debianProgram(pkg, `boot/vmlinuz-${version}`, signal);
  const modules = inCache("debian", pkg, "lib/modules", version);
  return { version, image, modules };
};

/** Where the modules lie below a kernel's directory, by name: virtio_blk → …/virtio_blk.ko. */
export const modulePaths = async (kernel: Kernel): Promise<Map<string, string>> => {
  const found = await readdir(join(kernel.modules, "kernel"), { recursive: true });
  return new Map(
    found
      .filter((path) => path.endsWith(".ko"))
      .map((path) => [path.split("/").at(-1)?.slice(0, -3) ?? "", join(kernel.modules, "kernel", path)]),
  );
};
