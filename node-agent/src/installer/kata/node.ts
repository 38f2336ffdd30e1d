import { vmSettings } from "@bulkhead/lib/api/kata.ts";
import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { type Architecture, installationOf, neededFiles } from "./installation.ts";

/** What a node can do about virtual machines, and why it cannot serve a profile of one. Pure. */

/** What hypervisors find in /dev/hugepages. */
export type HugePages = {
  /** 0 where none is mounted. */
  mebibytes: number;
  /** Why no guest can have any here; "" where it can. Free or not is not asked. */
  problem: string;
};

export type VmFacts = {
  arch: Architecture;
  /** `why`: what KVM said when a guest was to be booted; "" where one was. */
  kvm: { runs: boolean; why: string };
  /** QEMU's way to the agent in the guest. */
  vhostVsock: boolean;
  vhostNet: boolean;
  /** The node is a virtual machine itself: its guests are guests of a guest. */
  nested: boolean;
  hugePages: HugePages;
  /** Of cgroup v2, those that the kernel does not offer at the root; empty under v1. */
  missingControllers: readonly string[];
  /** Whether a file is on the node. */
  has(path: string): boolean;
};

/** Controllers of cgroup v2 that Kata enables for its sandboxes, and fails without. */
export const neededControllers = ["cpu", "cpuset", "memory", "pids"] as const;

/**
 * Why this node cannot run the profile's virtual machine, or undefined. `root` is where Kata is installed; files of an
 * artifact are not asked for here: they come with it.
 */
export function noVm(
  profile: Pick<DesiredProfile, "handler" | "artifact">,
  root: string,
  facts: VmFacts | undefined,
): string | undefined {
  const vm = vmSettings(profile.handler);
  if (vm === undefined || facts === undefined) return "nobody looked whether this node runs virtual machines";
  const reasons: string[] = [];
  if (!facts.kvm.runs)
    reasons.push(
      `KVM boots no guest here${facts.nested ? ", on a node that is a virtual machine itself" : ""}: ${facts.kvm.why}`,
    );
  if (vm.hypervisor === "qemu" && !facts.vhostVsock)
    reasons.push(
      "/dev/vhost-vsock is not there, by which QEMU reaches the guest: load the module vhost_vsock",
    );
  // Without the mount Kata's Go shim gives the guest ordinary pages, without a word. What Dragonball needs was not seen.
  const noPages = vm.hypervisor === "dragonball" ? "" : noHugePages(vm.hugepageMiB, facts.hugePages);
  if (noPages !== "") reasons.push(`the profile wants huge pages, and ${noPages}`);
  if (facts.missingControllers.length > 0)
    reasons.push(
      `cgroup v2 has no controller ${facts.missingControllers.join(", ")} here, and Kata wants it`,
    );
  const missing =
    profile.artifact.image === undefined
      ? neededFiles(installationOf(root, vm, facts.arch), vm).filter((path) => !facts.has(path))
      : [];
  if (missing.length > 0) {
    const more = missing.length > 1 ? ` and ${missing.length - 1} more are` : " is";
    reasons.push(`Kata is not installed at ${root}: ${missing[0]}${more} missing`);
  }
  return reasons.length === 0 ? undefined : reasons.join("; ");
}

/** `wanted`: size in MiB, if any. */
const noHugePages = (wanted: number | undefined, { mebibytes, problem }: HugePages): string => {
  if (wanted === undefined) return "";
  if (mebibytes === 0 || mebibytes === wanted) return problem;
  return `those in /dev/hugepages are of ${mebibytes} MiB, not of ${wanted}: see handler.kata.hugepageSize`;
};
