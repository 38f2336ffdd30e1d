import type { IdMapping, Mount } from "./oci.ts";

/** A mount whose source was found on the node. */
export type ResolvedMount = {
  destination: string;
  source: string;
  readonly: boolean;
  recursiveReadOnly: boolean;
  propagation: "private" | "host-to-container" | "bidirectional";
  /** More options of mount(8), such as noexec. */
  options: readonly string[];
  /** Owners are shown shifted, by an id-mapped mount. */
  ids?: { uids: IdMapping[]; gids: IdMapping[] };
};

/** Files and places that a pod shares among its containers. A path of "" is left out. */
export type PodFiles = { hostname: string; hosts: string; resolvConf: string; shm: string };

const nosuid = ["nosuid", "noexec", "nodev"];

const systemMounts = (privileged: boolean): Mount[] => [
  { destination: "/proc", type: "proc", source: "proc", options: nosuid },
  {
    destination: "/dev",
    type: "tmpfs",
    source: "tmpfs",
    options: ["nosuid", "strictatime", "mode=755", "size=65536k"],
  },
  {
    destination: "/dev/pts",
    type: "devpts",
    source: "devpts",
    options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
  },
  { destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: nosuid },
  { destination: "/sys", type: "sysfs", source: "sysfs", options: [...nosuid, privileged ? "rw" : "ro"] },
  {
    destination: "/sys/fs/cgroup",
    type: "cgroup",
    source: "cgroup",
    options: [...nosuid, "relatime", privileged ? "rw" : "ro"],
  },
];

const propagationOption = {
  private: "rprivate",
  "host-to-container": "rslave",
  bidirectional: "rshared",
} as const satisfies Record<ResolvedMount["propagation"], string>;

const bind = (mount: ResolvedMount): Mount => ({
  destination: mount.destination,
  type: "bind",
  source: mount.source,
  options: [
    "rbind",
    propagationOption[mount.propagation],
    mount.recursiveReadOnly ? "rro" : mount.readonly ? "ro" : "rw",
    ...(mount.ids ? ["idmap"] : []),
    ...mount.options,
  ],
  ...(mount.ids && { uidMappings: mount.ids.uids, gidMappings: mount.ids.gids }),
});

const depth = (path: string): number => path.split("/").filter((part) => part !== "").length;

/**
 * All mounts of a container, outer ones first. What the pod asks for at a place replaces ours there and hides
 * ours below it.
 */
export const mountsOf = (input: {
  mounts: readonly ResolvedMount[];
  files: PodFiles;
  privileged: boolean;
  readonlyRoot: boolean;
}): Mount[] => {
  const own = (destination: string, source: string, readonly: boolean): Mount[] =>
    source === ""
      ? []
      : [
          {
            destination,
            type: "bind",
            source,
            options: ["rbind", "rprivate", readonly ? "ro" : "rw"],
          },
        ];
  const ours = [
    ...systemMounts(input.privileged),
    ...own("/dev/shm", input.files.shm, false),
    ...own("/etc/hostname", input.files.hostname, input.readonlyRoot),
    ...own("/etc/hosts", input.files.hosts, input.readonlyRoot),
    ...own("/etc/resolv.conf", input.files.resolvConf, input.readonlyRoot),
  ];
  const taken = input.mounts.map((mount) => mount.destination.replace(/\/+$/, "") || "/");
  const kept = ours.filter(
    ({ destination }) =>
      !taken.some((place) => place === destination || (place !== "/" && destination.startsWith(`${place}/`))),
  );
  // A stable sort: mounts of the same depth stay in kubelet's order.
  const asked = input.mounts.map(bind).sort((a, b) => depth(a.destination) - depth(b.destination));
  return [...kept, ...asked];
};

/** How far the root's mounts must be tied to the node's for the propagation that was asked. */
export const rootPropagation = (mounts: readonly ResolvedMount[]): "rslave" | "rshared" | undefined => {
  if (mounts.some((mount) => mount.propagation === "bidirectional")) return "rshared";
  return mounts.some((mount) => mount.propagation === "host-to-container") ? "rslave" : undefined;
};
