import type { ClusterPlan, NodePlan } from "./plan.ts";

/** What this machine lets a node have. */
export type MachineFacts = {
  /** Names of the capabilities in our bounding set. */
  capabilities: readonly string[];
  /** Device nodes of this machine that a node needs and that are there. */
  devices: readonly { path: string; type: "c" | "b"; major: number; minor: number; mode: number }[];
};

/** Devices that a kubelet, an engine or a handler asks for; each is made if the machine has it. */
export const wantedDevices = [
  "/dev/kmsg",
  "/dev/fuse",
  "/dev/net/tun",
  "/dev/kvm",
  "/dev/vsock",
  "/dev/vhost-vsock",
  "/dev/vhost-net",
  "/dev/loop-control",
  ...Array.from({ length: 8 }, (_, i) => `/dev/loop${i}`),
];

/** Directories that stand on the machine's disk instead of the node's overlay: an engine mounts overlays in them. */
export const plainDirs = ["/var/lib/containerd", "/var/lib/kubelet", "/var/lib/bulkhead"];

/** The OCI runtime specification of a node: a privileged container whose PID 1 is systemd, as kind makes them. Pure. */
export const nodeBundle = (plan: ClusterPlan, node: NodePlan, rootfs: string, machine: MachineFacts) => ({
  ociVersion: "1.2.0",
  hostname: node.name,
  root: { path: rootfs, readonly: false },
  process: {
    terminal: false,
    cwd: "/",
    user: { uid: 0, gid: 0 },
    env: [
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "container=bulkhead",
      "LANG=C.UTF-8",
    ],
    // Kubelet and CSI want mounts to propagate inside the node; none may get out of it.
    args: ["/bin/sh", "-c", "mount --make-rshared / && exec /lib/systemd/systemd"],
    capabilities: {
      bounding: machine.capabilities,
      effective: machine.capabilities,
      permitted: machine.capabilities,
    },
    noNewPrivileges: false,
  },
  mounts: [
    { destination: "/proc", type: "proc", source: "proc" },
    { destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev"] },
    {
      destination: "/sys/fs/cgroup",
      type: "cgroup",
      source: "cgroup",
      options: ["nosuid", "noexec", "nodev"],
    },
    { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "strictatime", "mode=755"] },
    {
      destination: "/dev/pts",
      type: "devpts",
      source: "devpts",
      options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    { destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: ["nosuid", "noexec", "nodev"] },
    { destination: "/dev/shm", type: "tmpfs", source: "shm", options: ["nosuid", "nodev", "mode=1777"] },
    { destination: "/run", type: "tmpfs", source: "run", options: ["nosuid", "nodev", "mode=755"] },
    { destination: "/tmp", type: "tmpfs", source: "tmp", options: ["nosuid", "nodev", "mode=1777"] },
    ...plainDirs.map((dir) => ({
      destination: dir,
      type: "bind",
      source: `${node.disk}/plain${dir}`,
      options: ["rbind", "rw"],
    })),
  ],
  linux: {
    cgroupsPath: node.cgroup,
    namespaces: ["pid", "ipc", "uts", "mount", "network", "cgroup"].map((type) => ({ type })),
    rootfsPropagation: "rslave",
    resources: { devices: [{ allow: true, access: "rwm" }] },
    devices: machine.devices.map(({ mode, ...device }) => ({ ...device, fileMode: mode, uid: 0, gid: 0 })),
    sysctl: { "net.ipv4.ip_forward": "1" },
  },
  annotations: { "dev.bulkhead.cluster": plan.name, "dev.bulkhead.node": node.name },
});

/** Names of the bits of a capability set, capabilities(7), in the order of their numbers. */
const capabilityNames = [
  ..."CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE".split(" "),
  ..."NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO".split(" "),
  ..."SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME".split(" "),
  ..."SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG".split(" "),
  ..."WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE".split(" "),
];

/** The capabilities of a set as /proc/PID/status writes it: `000001fffeffffff`. */
export const capabilitiesOf = (mask: string): string[] => {
  const bits = BigInt(`0x${mask}`);
  return capabilityNames.filter((_, i) => (bits >> BigInt(i)) & 1n).map((name) => `CAP_${name}`);
};
