/**
 * The AppArmor profile that RuntimeDefault stands for (apparmor.d(5)).
 *
 * Capabilities and seccomp decide which calls a container may make, and the mounts which files it sees. What remains for
 * AppArmor is files by which the kernel of the whole node is ordered about, whatever mount they are reached by: masked and
 * read-only paths hold only as long as nobody mounts or unmounts, and CAP_SYS_ADMIN may. So files, sockets and
 * capabilities are let through as a whole, and what is refused is listed, each with its reason.
 */
export const defaultApparmor = "bulkhead-default";

/** Below /proc/sys: of the node, and of no namespace of the container's. */
const nodeSysctls = ["abi", "crypto", "debug", "dev", "sunrpc", "user", "vm"];

const refused: readonly { why: string; rules: readonly string[] }[] = [
  {
    why: "a new mount could show any file at a path that no rule names; without umount what hides files stays",
    rules: ["mount", "pivot_root"],
  },
  {
    why: "orders to the kernel, its memory, and its messages",
    rules: [
      "/proc/sysrq-trigger rwklx",
      "/proc/kcore rwklx",
      "/proc/kpage* rwklx",
      "/proc/kmsg rwklx",
      "/dev/mem rwklx",
      "/dev/kmem rwklx",
      "/dev/port rwklx",
      "/dev/kmsg wklx",
    ],
  },
  {
    why: "settings of the node: vm.overcommit, kernel.core_pattern, kernel.modprobe, fs.binfmt_misc run things as the node's root. Of a namespace, and left writable: net, fs.mqueue, kernel.msg*, kernel.sem*, kernel.shm*",
    rules: [
      `/proc/sys/{${nodeSysctls.join(",")}}/** wklx`,
      "/proc/sys/fs/[^m]** wklx",
      "/proc/sys/fs/m[^q]** wklx",
      "/proc/sys/kernel/[^ms]** wklx",
      "/proc/sys/kernel/m[^s]** wklx",
      "/proc/sys/kernel/s[^eh]** wklx",
      "/proc/sys/kernel/se[^m]** wklx",
      "/proc/sys/kernel/sh[^m]** wklx",
    ],
  },
  {
    why: "interrupts, buses and tables of the hardware",
    rules: ["/proc/{acpi,bus,driver,irq,scsi}/** wklx", "/proc/{mtrr,timer_list} wklx"],
  },
  {
    why: "sysfs is the node's devices and modules; of it cgroups alone may be the container's",
    rules: ["/sys/[^f]** wklx", "/sys/f[^s]** wklx", "/sys/fs/[^c]** wklx", "/sys/fs/c[^g]** wklx"],
  },
  {
    why: "of cgroup v1: a program that the kernel runs as the node's root when a group is empty",
    rules: ["/sys/fs/cgroup/**release_agent wklx"],
  },
  {
    why: "firmware, policies of other profiles, and the kernel's own traces are not for reading either",
    rules: ["/sys/firmware/** rwklx", "/sys/kernel/{debug,security,tracing}/** rwklx"],
  },
  {
    why: "how much power the processor takes tells what others compute",
    rules: ["/sys/devices/virtual/powercap/** rwklx"],
  },
];

/**
 * Its text. `abi` is the file, below /etc/apparmor.d, of the kernel's features that it was written for: a newer parser
 * would refuse what newer features mediate and no rule names.
 */
export const defaultApparmorProfile = (
  abi: string | undefined,
): string => `${abi === undefined ? "" : `abi <${abi}>,\n\n`}# Written by Bulkhead's runtime.
profile ${defaultApparmor} flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,

  # The runtime ends and stops what runs here; distributions give runc and crun names of their own.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  # Processes of containers may deal with each other; namespaces keep those of different pods apart.
  signal (send, receive) peer=${defaultApparmor},
  ptrace (trace, read, tracedby, readby) peer=${defaultApparmor},

${refused.map(({ why, rules }) => `  # ${why}\n${rules.map((rule) => `  deny ${rule},\n`).join("")}`).join("\n")}}
`;
