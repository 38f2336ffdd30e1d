import type { Contexts } from "./selinux.ts";

/** What this node's kernel and this process may do, read once at start. */
export type HostFacts = {
  /** Capabilities in the bounding set of this process. */
  capabilities: string[];
  /** Lowest oom_score_adj that this process may give away. */
  oomScoreAdjMin: number;
  /** Open files a process may have: soft and hard limit that containers start with. */
  openFiles: { soft: number; hard: number };
  cgroup: "v1" | "v2";
  cgroupDriver: "cgroupfs" | "systemd";
  swapAccounting: boolean;
  hugetlb: boolean;
  apparmor: boolean;
  /** SELinux is on, and labels are wanted: the contexts of the node's policy, where it has some for containers. */
  selinux: { contexts: Contexts | undefined } | undefined;
  seccomp: boolean;
  /** As process.arch. */
  arch: string;
};
