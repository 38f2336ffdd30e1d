import { copyFile, mkdir, realpath, symlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { nodeRootfs } from "../cluster/rootfs.ts";
import { tool } from "../tools/cache.ts";
import { criuHome } from "../tools/criu.ts";
import { run } from "../tools/run.ts";
import type { Guest } from "./guest.ts";
import { debianKernel } from "./kernel.ts";

const koffi = "@koromix/koffi-linux-x64";

/** A machine like this one, with this one's programs, on another kernel. */
export const amd64: Guest = {
  // Without XSAVE, so without AVX: QEMU of Debian 12 lets a guest of KVM set XCR0 behind KVM's back, which then takes the
  // guest's AVX away, and gVisor ends of it.
  qemu: ["qemu-system-x86_64", "-M", "q35", "-cpu", "max,-xsave"],
  console: "ttyS0",
  kernel: debianKernel,
  rootfs: nodeRootfs,
  tool,
  busybox: "/bin/busybox",
  koffi: { name: koffi, directory: join(import.meta.dirname, "../../node_modules", koffi) },
  cc: "cc",
  async addPrograms(root, kernel, signal) {
    const copy = async (from: string, path: string): Promise<void> => {
      await mkdir(dirname(join(root, path)), { recursive: true });
      await copyFile(await realpath(from), join(root, path));
    };
    await mkdir(join(root, "opt"), { recursive: true });
    await mkdir(join(root, "usr/local/bin"), { recursive: true });
    await run(["cp", "-r", criuHome(), join(root, "opt/criu")], { signal });
    await symlink("/opt/criu/criu", join(root, "usr/local/bin/criu"));
    const [conmon, parser] = (await run(["which", "conmon", "apparmor_parser"], { signal })).split("\n") as [
      string,
      string,
    ];
    await copy(process.execPath, "usr/local/bin/node");
    await copy(conmon, "usr/local/bin/conmon");
    // AppArmor is on in Debian's kernel.
    await copy(parser, "usr/sbin/apparmor_parser");
    for (const path of ["etc/apparmor", "etc/apparmor.d", "usr/share/apparmor-features"]) {
      await mkdir(join(root, dirname(path)), { recursive: true });
      await run(["cp", "-r", join("/", path), join(root, path)], { signal });
    }
    for (const line of (await run(["ldd", process.execPath, conmon, parser], { signal })).split("\n")) {
      const path = / => (\/\S+)/.exec(line)?.[1];
      if (path !== undefined) await copy(path, join("usr/lib/x86_64-linux-gnu", basename(path)));
    }
    await mkdir(join(root, "usr/lib/modules"), { recursive: true });
    await run(["cp", "-r", kernel.modules, join(root, "usr/lib/modules")], { signal });
  },
};
