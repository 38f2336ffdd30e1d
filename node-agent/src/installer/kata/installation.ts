import { join } from "node:path";
import type { VmSettings } from "@bulkhead/lib/api/kata.ts";

/**
 * An installation of Kata Containers as its static release lays it out: bin, libexec, runtime-rs and share below one
 * directory. Pure: names, not files.
 */

/** Where Kata's own installers put it on a node; a profile without an artifact takes the one that it finds there. */
export const systemInstallation = "/opt/kata";

export type Architecture = "amd64" | "arm64";

/** Paths on the node of everything that a profile's virtual machine is made of. */
export type Installation = {
  shim: string;
  /** "" where the hypervisor is a part of the shim. */
  hypervisor: string;
  jailer: string;
  virtiofsd: string;
  kernel: string;
  /** One of the two. */
  image: string | undefined;
  initrd: string | undefined;
  /** What the machine itself boots first, "" for nothing. */
  firmware: string;
};

const hypervisorNames = {
  qemu: { amd64: "qemu-system-x86_64", arm64: "qemu-system-aarch64" },
  "cloud-hypervisor": { amd64: "cloud-hypervisor", arm64: "cloud-hypervisor" },
  firecracker: { amd64: "firecracker", arm64: "firecracker" },
} as const;

/** The paths below `root` for a virtual machine. */
export function installationOf(root: string, vm: VmSettings, arch: Architecture): Installation {
  const share = (name: string): string => join(root, "share/kata-containers", name);
  const kernel =
    vm.hypervisor === "dragonball" ? "vmlinux-dragonball-experimental.container" : "vmlinux.container";
  return {
    shim: join(root, vm.shim === "rust" ? "runtime-rs/bin" : "bin", "containerd-shim-kata-v2"),
    hypervisor: vm.hypervisor === "dragonball" ? "" : join(root, "bin", hypervisorNames[vm.hypervisor][arch]),
    jailer: vm.hypervisor === "firecracker" ? join(root, "bin/jailer") : "",
    virtiofsd: join(root, "libexec/virtiofsd"),
    kernel: share(vm.kernel ?? kernel),
    image: vm.initrd === undefined ? share(vm.image ?? "kata-containers.img") : undefined,
    initrd: vm.initrd === undefined ? undefined : share(vm.initrd),
    firmware: vm.hypervisor === "qemu" && arch === "arm64" ? join(root, "share/aavmf/AAVMF_CODE.fd") : "",
  };
}

/** The files of {@link installationOf} without which no guest starts. */
export const neededFiles = (installation: Installation, vm: VmSettings): string[] => {
  const { shim, hypervisor, jailer, virtiofsd, kernel, image, initrd, firmware } = installation;
  // Dragonball serves its shared files itself.
  const daemon = vm.rootfs === "virtio-fs" && vm.hypervisor !== "dragonball" ? [virtiofsd] : [];
  return [shim, hypervisor, jailer, ...daemon, kernel, image ?? initrd ?? "", firmware].filter(
    (path) => path !== "",
  );
};
