import type { LinuxContainerSecurityContext } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Capabilities } from "./oci.ts";

/** Capabilities by bit number (capability.h of Linux 6.x). */
export const capabilityNames = [
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_DAC_READ_SEARCH",
  "CAP_FOWNER",
  "CAP_FSETID",
  "CAP_KILL",
  "CAP_SETGID",
  "CAP_SETUID",
  "CAP_SETPCAP",
  "CAP_LINUX_IMMUTABLE",
  "CAP_NET_BIND_SERVICE",
  "CAP_NET_BROADCAST",
  "CAP_NET_ADMIN",
  "CAP_NET_RAW",
  "CAP_IPC_LOCK",
  "CAP_IPC_OWNER",
  "CAP_SYS_MODULE",
  "CAP_SYS_RAWIO",
  "CAP_SYS_CHROOT",
  "CAP_SYS_PTRACE",
  "CAP_SYS_PACCT",
  "CAP_SYS_ADMIN",
  "CAP_SYS_BOOT",
  "CAP_SYS_NICE",
  "CAP_SYS_RESOURCE",
  "CAP_SYS_TIME",
  "CAP_SYS_TTY_CONFIG",
  "CAP_MKNOD",
  "CAP_LEASE",
  "CAP_AUDIT_WRITE",
  "CAP_AUDIT_CONTROL",
  "CAP_SETFCAP",
  "CAP_MAC_OVERRIDE",
  "CAP_MAC_ADMIN",
  "CAP_SYSLOG",
  "CAP_WAKE_ALARM",
  "CAP_BLOCK_SUSPEND",
  "CAP_AUDIT_READ",
  "CAP_PERFMON",
  "CAP_BPF",
  "CAP_CHECKPOINT_RESTORE",
] as const;

/** What a container gets when nobody asks for more: the set that every CRI runtime agrees on. */
const ordinary = [
  "CAP_AUDIT_WRITE",
  "CAP_CHOWN",
  "CAP_DAC_OVERRIDE",
  "CAP_FOWNER",
  "CAP_FSETID",
  "CAP_KILL",
  "CAP_MKNOD",
  "CAP_NET_BIND_SERVICE",
  "CAP_NET_RAW",
  "CAP_SETFCAP",
  "CAP_SETGID",
  "CAP_SETPCAP",
  "CAP_SETUID",
  "CAP_SYS_CHROOT",
];

const canonical = (name: string): string => {
  const upper = name.toUpperCase();
  const full = upper.startsWith("CAP_") ? upper : `CAP_${upper}`;
  if (!(capabilityNames as readonly string[]).includes(full))
    throw new RuntimeError("invalid-argument", `Cannot use capability "${name}": no such capability`);
  return full;
};

const isAll = (name: string): boolean => name.toUpperCase() === "ALL" || name.toUpperCase() === "CAP_ALL";

/**
 * The capability sets of a container. ALL works for add and drop; single names are applied after it. Nothing
 * exceeds `bounding`, what this process itself may give.
 */
export const capabilitiesOf = (
  security: LinuxContainerSecurityContext | undefined,
  bounding: readonly string[],
): Capabilities => {
  const add = security?.capabilities?.addCapabilities ?? [];
  const drop = security?.capabilities?.dropCapabilities ?? [];
  const ambientAsked = security?.capabilities?.addAmbientCapabilities ?? [];
  let held = new Set(security?.privileged || add.some(isAll) ? bounding : ordinary);
  if (!security?.privileged && drop.some(isAll)) held = new Set();
  for (const name of add) if (!isAll(name)) held.add(canonical(name));
  if (!security?.privileged) for (const name of drop) if (!isAll(name)) held.delete(canonical(name));
  const ambient = ambientAsked.some(isAll) ? [...held] : ambientAsked.map(canonical);
  const may = (names: Iterable<string>): string[] =>
    [...names].filter((name) => bounding.includes(name)).sort();
  const sets = may(new Set([...held, ...ambient]));
  return {
    bounding: sets,
    effective: sets,
    permitted: sets,
    ...(ambient.length > 0 && { inheritable: may(ambient), ambient: may(ambient) }),
  };
};
