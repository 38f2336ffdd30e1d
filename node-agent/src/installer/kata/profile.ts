import type { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { type VmSettings, vmSettings } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { kataConfiguration, limitsOverhead, type NodeOfVm } from "./configuration.ts";
import { installationOf } from "./installation.ts";

/** What makes a profile's virtual machine on a node: Kata's configuration and the runtime's handler. Pure. */

type VmFiles = {
  /** Of this revision alone: a pod that is just being started reads what its handler named. */
  configuration: { path: string; text: string };
  handler: HandlerConfig;
};

/** `root`: where Kata is installed, laid out as its static release below /opt/kata. */
export function vmFiles(
  profile: Pick<DesiredProfile, "name" | "revision" | "handler">,
  root: string,
  node: NodeOfVm,
): VmFiles {
  const vm = settingsOf(profile);
  const { name, revision } = profile;
  const installation = installationOf(root, vm, node.arch);
  const path = `/etc/bulkhead/kata/${name}.${revision}.toml`;
  const { boot, createContainer, stop } = vm.deadlines;
  return {
    configuration: { path, text: kataConfiguration(vm, installation, { ...node, revision }) },
    handler: {
      kind: "shim",
      name,
      revision,
      binary: installation.shim,
      // The type that containerd's and CRI-O's configurations give Kata's options.
      optionsTypeUrl: "io.containerd.kata.v2.options",
      configPath: path,
      wall: "vm",
      kata: {
        ...{ runtime: vm.shim, rootfs: vm.rootfs, diskMiB: vm.diskMiB, metrics: servesMetrics(vm) },
        ...(vm.hugepageMiB === undefined
          ? {}
          : { hugepages: { pageMiB: vm.hugepageMiB, machineMiB: vm.memoryMiB } }),
        ...(vm.shim === "rust" ? { withoutLimit: withoutLimit(vm) } : {}),
      },
      allowedAnnotations: vm.enableAnnotations.map((each) => `io.katacontainers.config.hypervisor.${each}`),
      // The sandbox's create boots the guest and makes a container in it; what Kata itself does is beside that.
      deadlines: { create: boot + createContainer + 30, start: createContainer, stop },
      env: {},
    },
  };
}

/**
 * A pod with a limit of one kind alone has the profile's machine in the other. runtime-rs takes both together: of a pod
 * with a CPU limit and none of memory it would make a machine of 32 MiB, which boots nothing.
 */
const withoutLimit = (vm: VmSettings): { vcpus: number; memoryMiB: number } => {
  const overhead = limitsOverhead(vm);
  return { vcpus: vm.vcpus - overhead.vcpus, memoryMiB: Math.max(0, vm.memoryMiB - overhead.memoryMiB) };
};

/**
 * Of QEMU and Firecracker runtime-rs knows no metrics, and as of 4.1 its handler of that question is a panic that ends
 * the shim. Under Dragonball a large answer of the guest can break its connection, and the pod ends with it.
 */
const servesMetrics = ({ shim, hypervisor }: VmSettings): boolean =>
  shim === "go" || hypervisor === "cloud-hypervisor";

/** A command line that succeeds when the profile's shim runs on the node. */
export const vmCheck = (profile: Pick<DesiredProfile, "handler">, root: string, node: NodeOfVm): string[] => [
  installationOf(root, settingsOf(profile), node.arch).shim,
  "--version",
];

const settingsOf = ({ handler }: Pick<DesiredProfile, "handler">): VmSettings => {
  const vm = vmSettings(handler);
  if (vm === undefined) throw new RuntimeError("internal", "A profile of Kata has no kata settings");
  return vm;
};
