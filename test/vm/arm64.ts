import { copyFile, mkdir, readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { arm64Cc, arm64Koffi, arm64Node, arm64Root } from "../tools/arm64.ts";
import { tool } from "../tools/cache.ts";
import type { Guest } from "./guest.ts";

/**
 * A machine of another architecture than this one's: Debian's programs from its packages, ours compiled here. The
 * processor is one that servers have, and can run guests of its own; QEMU's "max" spends most of its time on signing
 * return addresses.
 */
export const arm64: Guest = {
  qemu: ["qemu-system-aarch64", "-M", "virt,virtualization=on", "-cpu", "neoverse-n1"],
  console: "ttyAMA0",
  async kernel() {
    const root = arm64Root();
    const [version] = await readdir(join(root, "usr/lib/modules"));
    if (version === undefined)
      throw new RuntimeError("not-found", `Cannot find the kernel's modules in ${root}`);
    return {
      version,
      image: join(root, "boot", `vmlinuz-${version}`),
      modules: join(root, "usr/lib/modules", version),
    };
  },
  rootfs: async () => arm64Root(),
  tool: (name) => tool(join("arm64", name)),
  busybox: join(arm64Root(), "bin/busybox"),
  koffi: { name: "@koromix/koffi-linux-arm64", directory: arm64Koffi() },
  cc: arm64Cc,
  async addPrograms(root) {
    await mkdir(join(root, "usr/local/bin"), { recursive: true });
    await copyFile(arm64Node(), join(root, "usr/local/bin/node"));
    await symlink("/usr/bin/conmon", join(root, "usr/local/bin/conmon"));
  },
};
