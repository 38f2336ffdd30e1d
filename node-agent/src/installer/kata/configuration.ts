import type { VmSettings } from "@bulkhead/lib/api/kata.ts";
import * as toml from "smol-toml";
import type { Architecture, Installation } from "./installation.ts";

/**
 * configuration.toml of Kata Containers 4 for one virtual machine. Pure. Kata's two runtimes name and place some keys
 * differently; where a key is left out, Kata's own default of 4.x holds.
 */

export type NodeOfVm = {
  arch: Architecture;
  /** Whether /dev/vhost-net is there; without it QEMU serves the network itself. */
  vhostNet: boolean;
};

/**
 * The kernel parameter that names the profile's revision to the guest. The kernel ignores it; a canary that sees it
 * runs in a guest that was booted by this very configuration.
 */
export const revisionParameter = (revision: string): string => `bulkhead.revision=${revision}`;

type Table = Record<string, unknown>;

/** The name of a hypervisor's table. */
const tableName = {
  qemu: "qemu",
  "cloud-hypervisor": "clh",
  dragonball: "dragonball",
  firecracker: "firecracker",
};

/** The text of the file. Kata reads it when a pod starts, and never again for that pod. */
export function kataConfiguration(
  vm: VmSettings,
  files: Installation,
  node: NodeOfVm & { revision: string },
): string {
  const name = tableName[vm.hypervisor];
  const rust = vm.shim === "rust";
  const factory = { enable_template: false };
  const hypervisor: Table = {
    ...machine(vm, files, node),
    ...boot(vm, files, node.revision),
    ...size(vm),
    ...sharing(vm, files),
    ...disks(vm),
    enable_hugepages: vm.hugepageMiB !== undefined,
    // Kata takes these for regular expressions that may match anywhere.
    enable_annotations: vm.enableAnnotations.map((each) => `^${each}$`),
    disable_vhost_net: !node.vhostNet,
    entropy_source: "/dev/urandom",
    valid_entropy_sources: ["/dev/urandom"],
    disable_guest_selinux: true,
    enable_debug: false,
    // runtime-rs has it in the hypervisor's table, the older runtime beside it.
    ...(rust ? { factory } : {}),
  };
  return toml.stringify({
    hypervisor: { [name]: hypervisor },
    ...(rust ? {} : { factory }),
    agent: { kata: agent(vm) },
    runtime: runtime(vm, name),
  });
}

const machine = (vm: VmSettings, files: Installation, { arch }: NodeOfVm): Table => {
  // Empty by its own rule: the hypervisor is in the shim.
  if (vm.hypervisor === "dragonball") return { path: "", valid_hypervisor_paths: [] };
  const path = { path: files.hypervisor, valid_hypervisor_paths: [files.hypervisor] };
  if (vm.hypervisor === "firecracker")
    return { ...path, jailer_path: files.jailer, valid_jailer_paths: [files.jailer] };
  // A tenant is not to start machines of its own: the node's KVM would have more to get wrong. The older runtime has no
  // such key, and on arm64 the hypervisor cannot.
  if (vm.hypervisor === "cloud-hypervisor")
    return {
      ...path,
      ...(vm.shim === "rust" && arch === "amd64" && { disable_nested_virtualization: true }),
    };
  return {
    ...path,
    machine_type: arch === "amd64" ? "q35" : "virt",
    machine_accelerators: arch === "arm64" && vm.shim === "rust" ? "usb=off,gic-version=host" : "",
    cpu_features: arch === "amd64" ? "pmu=off,vmx=off,svm=off" : "pmu=off",
    firmware: files.firmware,
    // Memory that is a disk is not coherent on arm64 (Kata's own default there).
    ...(vm.shim === "rust"
      ? { vm_rootfs_driver: arch === "amd64" ? "virtio-pmem" : "virtio-blk-pci" }
      : { disable_image_nvdimm: arch === "arm64" }),
  };
};

/** Kata's parameters of each guest kernel, then the profile's: of two that contradict, the kernel takes the last. */
const boot = (vm: VmSettings, files: Installation, revision: string): Table => {
  const cgroups = ["cgroup_no_v1=all", "systemd.unified_cgroup_hierarchy=1"];
  const console = {
    qemu: [],
    "cloud-hypervisor": [],
    dragonball: ["console=ttyS1", "agent.log_vport=1025"],
    firecracker: vm.shim === "rust" ? ["console=ttyS0", "agent.log_vport=1025"] : [],
  }[vm.hypervisor];
  return {
    kernel: files.kernel,
    ...(files.image === undefined ? { initrd: files.initrd } : { image: files.image, rootfs_type: "ext4" }),
    kernel_params: [...console, ...cgroups, revisionParameter(revision), ...vm.kernelParameters].join(" "),
  };
};

const size = (vm: VmSettings): Table => ({
  default_vcpus: vm.vcpus,
  // Dragonball caps what it starts with by this; 0 stands for all of the node's elsewhere.
  default_maxvcpus: vm.hypervisor === "dragonball" ? 32 : 0,
  default_memory: vm.memoryMiB,
  ...(vm.shim === "rust" ? rustSize(vm) : {}),
  default_bridges: vm.hypervisor === "dragonball" ? 0 : 1,
});

const rustSize = (vm: VmSettings): Table => {
  // For this hypervisor alone Kata fills nothing in, and refuses none.
  if (vm.hypervisor === "firecracker") return { memory_slots: 10 };
  const { vcpus, memoryMiB } = limitsOverhead(vm);
  return { overhead_vcpus: vcpus, overhead_memory: memoryMiB };
};

/** What runtime-rs adds to a pod's limits for the guest itself. */
export const limitsOverhead = (vm: VmSettings): { vcpus: number; memoryMiB: number } => {
  if (vm.hypervisor === "firecracker") return { vcpus: 0, memoryMiB: 0 };
  // The older runtime adds the limits to default_memory, and so it is with huge pages: of them the RuntimeClass declares
  // what every machine takes.
  return { vcpus: 0.2, memoryMiB: vm.hugepageMiB === undefined ? 32 : vm.memoryMiB };
};

const sharing = (vm: VmSettings, files: Installation): Table => {
  if (vm.hypervisor === "firecracker") return {};
  if (vm.rootfs === "block") return { shared_fs: "none" };
  const cache = { virtio_fs_cache: "auto", virtio_fs_cache_size: 0 };
  if (vm.hypervisor === "dragonball")
    return { shared_fs: "inline-virtio-fs", ...cache, virtio_fs_extra_args: [] };
  return {
    shared_fs: "virtio-fs",
    virtio_fs_daemon: files.virtiofsd,
    valid_virtio_fs_daemon_paths: [files.virtiofsd],
    virtio_fs_queue_size: 1024,
    virtio_fs_extra_args:
      vm.shim === "rust"
        ? ["--thread-pool-size=1", "-o", "announce_submounts"]
        : ["--thread-pool-size=1", "--announce-submounts"],
    ...cache,
  };
};

const blockDrivers = {
  rust: {
    qemu: "virtio-scsi",
    "cloud-hypervisor": "virtio-blk-pci",
    dragonball: "virtio-blk-pci",
    firecracker: "virtio-blk-mmio",
  },
  go: {
    qemu: "virtio-scsi",
    "cloud-hypervisor": "virtio-blk",
    dragonball: "virtio-blk",
    firecracker: "virtio-mmio",
  },
} as const;

const disks = (vm: VmSettings): Table => ({
  block_device_driver: blockDrivers[vm.shim][vm.hypervisor],
  disable_block_device_use: false,
  // io_uring is switched off on many hardened nodes.
  ...(vm.hypervisor === "qemu" ? { block_device_aio: "threads" } : {}),
});

/** Both runtimes wait for the guest to boot and for a container to be made, under different names and units. */
const agent = ({ shim, deadlines }: VmSettings): Table =>
  shim === "rust"
    ? {
        enable_debug: false,
        debug_console_enabled: false,
        // The pause between two tries; how long is tried in all is the other one.
        dial_timeout_ms: 10,
        reconnect_timeout_ms: deadlines.boot * 1000,
        create_container_timeout: deadlines.createContainer,
      }
    : { enable_debug: false, debug_console_enabled: false, dial_timeout: deadlines.boot };

const runtime = (vm: VmSettings, hypervisor: string): Table => ({
  enable_debug: false,
  internetworking_model: "tcfilter",
  // Kata's default: the guest's kernel stands behind the machine, and the profile was written for the node's.
  disable_guest_seccomp: true,
  disable_new_netns: false,
  // All of a pod's processes in the pod's cgroup: what the hypervisor takes is the pod's.
  sandbox_cgroup_only: true,
  static_sandbox_resource_mgmt: true,
  vfio_mode: "guest-kernel",
  emptydir_mode: "shared-fs",
  dan_conf: "/run/kata-containers/dans",
  ...(vm.shim === "rust"
    ? { name: "virt_container", hypervisor_name: hypervisor, agent_name: "kata" }
    : { create_container_timeout: vm.deadlines.createContainer, disable_guest_empty_dir: true }),
  ...(vm.hypervisor === "dragonball" ? { use_passfd_io: true, passfd_listener_port: 1027 } : {}),
});
