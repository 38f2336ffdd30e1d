import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { capabilityNames } from "../spec/capabilities.ts";
import type { HostFacts } from "../spec/host.ts";
import { type Contexts, parseContexts, policyOf } from "../spec/selinux.ts";

const read = (path: string): string => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
};

const wantedSoftFiles = 1024;
const wantedHardFiles = 524_288;

/** What the policy says of containers, at the places where every engine looks. `root` is the node's. */
export const readContexts = (root = "/"): Contexts | undefined => {
  const policy = policyOf(read(join(root, "etc/selinux/config")));
  const places = ["usr/share/containers/selinux/contexts", `etc/selinux/${policy}/contexts/lxc_contexts`];
  return parseContexts(places.map((place) => read(join(root, place))).find((text) => text !== "") ?? "");
};

/**
 * Looks at the kernel and at this process, as configured: `driver` auto means systemd where it manages a v2 tree;
 * without `selinux` nothing is labelled.
 */
export const readHostFacts = ({
  driver,
  selinux,
}: {
  driver: "auto" | "cgroupfs" | "systemd";
  selinux: boolean;
}): HostFacts => {
  const status = read("/proc/self/status");
  const bounding = BigInt(`0x${/^CapBnd:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  const capabilities = capabilityNames.filter((_, bit) => (bounding >> BigInt(bit)) & 1n);
  const hardFiles = Number(
    /^Max open files\s+\S+\s+(\d+)/m.exec(read("/proc/self/limits"))?.[1] ?? wantedHardFiles,
  );
  const v2 = existsSync("/sys/fs/cgroup/cgroup.controllers");
  const own = /^0::(.*)$/m.exec(read("/proc/self/cgroup"))?.[1] ?? "/";
  return {
    capabilities,
    // Without CAP_SYS_RESOURCE a process cannot go below what it was given itself (oom_score_adj, proc(5)).
    oomScoreAdjMin: capabilities.includes("CAP_SYS_RESOURCE")
      ? -1000
      : Number(read("/proc/self/oom_score_adj").trim() || 0),
    openFiles: { soft: Math.min(wantedSoftFiles, hardFiles), hard: Math.min(wantedHardFiles, hardFiles) },
    cgroup: v2 ? "v2" : "v1",
    cgroupDriver:
      driver !== "auto" ? driver : v2 && existsSync("/run/systemd/system") ? "systemd" : "cgroupfs",
    swapAccounting: v2
      ? existsSync(join("/sys/fs/cgroup", own, "memory.swap.max"))
      : existsSync("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
    hugetlb: v2
      ? read("/sys/fs/cgroup/cgroup.controllers").split(/\s+/).includes("hugetlb")
      : // systemd makes the directory whether or not the controller is there.
        existsSync("/sys/fs/cgroup/hugetlb/cgroup.procs"),
    apparmor: read("/sys/module/apparmor/parameters/enabled").startsWith("Y"),
    selinux: selinux && existsSync("/sys/fs/selinux/enforce") ? { contexts: readContexts() } : undefined,
    seccomp: /^Seccomp:/m.test(status),
    arch: process.arch,
  };
};
