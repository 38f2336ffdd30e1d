/** Files of a checkpoint archive, as users of CRI-O and containerd, the kubelet and checkpointctl know them. */
export const layout = {
  /** The runtime's own image of the processes: CRIU's or gVisor's. */
  images: "checkpoint",
  /** Where it came from (dump.ts). */
  config: "config.dump",
  /** The OCI specification that it ran with. */
  spec: "spec.dump",
  /** Times and state, in containerd's form. */
  status: "status",
  /** What changed in the root file system, for looking into. */
  rootfsDiff: "rootfs-diff.tar",
  /** Of a pod's checkpoint: {@link import("./manifest.ts").PodDump}. */
  pod: "pod.dump",
} as const;
