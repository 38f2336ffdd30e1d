import { z } from "zod";
import { type GvisorPromise, type Outside, outsideChecks } from "./outside.ts";

/**
 * What a canary sees behind its wall, and what that proves. Pure: the canary's container prints the facts, the
 * installer reads the same facts of the host, and this file compares them.
 */

const namespaceKinds = ["pid", "mnt", "net", "ipc", "uts"] as const;
export type NamespaceKind = (typeof namespaceKinds)[number];

export const View = z.object({
  /** /proc/version: the kernel that answers system calls. */
  version: z.string(),
  /** Kernel release, as uname(2) says. */
  release: z.string(),
  bootId: z.string(),
  /** /proc/cmdline: what the kernel was booted with. */
  cmdline: z.string().default(""),
  /** First line of the kernel's log, "" where it may not be read. */
  kernelLog: z.string().default(""),
  /** Device nodes in /dev. */
  devices: z.array(z.string()).default([]),
  /** How many processes /proc shows. */
  processes: z.int().default(0),
  /** Link text such as pid:[4026531836], "" where it cannot be read. */
  namespaces: z.record(z.string(), z.string()),
});
export type View = z.infer<typeof View>;

/** The wall that a kind of handler promises. */
export type Wall = "namespaces" | "kernel" | "vm";

export type Verdict = { assertions: string[]; broken: string[] };

/** The program that the canary's container runs by ExecSync, in the canary image's own shell. */
export const viewCommand = [
  "/bin/sh",
  "-c",
  [
    "printf 'version=%s\\n' \"$(cat /proc/version)\"",
    "printf 'release=%s\\n' \"$(uname -r)\"",
    "printf 'bootId=%s\\n' \"$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)\"",
    "printf 'cmdline=%s\\n' \"$(cat /proc/cmdline 2>/dev/null)\"",
    "printf 'kernelLog=%s\\n' \"$(dmesg 2>/dev/null | head -n 1)\"",
    'd=; for f in /dev/*; do if [ ! -L "$f" ] && { [ -b "$f" ] || [ -c "$f" ]; }; then d="$d,$f"; fi; done; printf \'devices=%s\\n\' "$d"',
    "set -- /proc/[0-9]*; printf 'processes=%s\\n' $#",
    `for n in ${namespaceKinds.join(" ")}; do printf 'ns.%s=%s\\n' $n "$(readlink /proc/self/ns/$n 2>/dev/null)"; done`,
  ].join("; "),
];

/** The kernel keeps no longer command lines. */
const maxValue = 4096;

/** Reads what {@link viewCommand} printed. Lines that it does not know are the canary's own affair. */
export function parseView(output: string): View {
  const lines = new Map(
    output.split("\n").flatMap((line) => {
      const at = line.indexOf("=");
      return at > 0 ? [[line.slice(0, at), line.slice(at + 1, at + 1 + maxValue)] as const] : [];
    }),
  );
  return {
    version: lines.get("version") ?? "",
    release: lines.get("release") ?? "",
    bootId: lines.get("bootId") ?? "",
    cmdline: lines.get("cmdline") ?? "",
    kernelLog: lines.get("kernelLog") ?? "",
    devices: (lines.get("devices") ?? "").split(",").flatMap((path) => /^\/dev\/(.+)$/.exec(path)?.[1] ?? []),
    processes: Number(lines.get("processes") ?? 0),
    namespaces: Object.fromEntries(namespaceKinds.map((kind) => [kind, lines.get(`ns.${kind}`) ?? ""])),
  };
}

/**
 * What shows that a kernel is the wall's own: gVisor says its name and is started as its profile says, a guest says the
 * parameter that it was booted with.
 */
export type Mark = ({ engine: "gvisor" } & Partial<GvisorPromise>) | { parameter: string };

type Check = [name: string, holds: boolean];

/**
 * Compares what the canary sees with what the host sees, of itself and (`outside`) of the canary. A wall that cannot be
 * shown counts as broken.
 */
export function judge(wall: Wall, inside: View, host: View, mark?: Mark, outside?: Outside): Verdict {
  const checks: Check[] = [
    ...(wall === "namespaces" ? namespaceChecks(inside, host) : kernelChecks(wall, inside, host, mark)),
    // A device or a process too many is the host's, whatever the wall is made of.
    ["own-devices", inside.devices.every((name) => plainDevices.has(name))],
    ["own-processes", inside.processes > 0 && inside.processes <= maxProcesses],
    ...(wall === "namespaces" || outside === undefined
      ? []
      : outsideChecks(outside, mark && "engine" in mark ? { network: "sandbox", ...mark } : undefined)),
  ];
  return {
    assertions: checks.filter(([, holds]) => holds).map(([name]) => name),
    broken: checks.filter(([, holds]) => !holds).map(([name]) => name),
  };
}

/** Every container has these (OCI runtime specification, "Default Devices"); gVisor adds a fuse of its own kernel. */
const plainDevices = new Set([
  ...["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fuse"],
]);
/** The canary's own process, the shell that looks, and what it starts. */
const maxProcesses = 8;

const namespaceChecks = (inside: View, host: View): Check[] =>
  namespaceKinds.map((kind) => {
    const own = inside.namespaces[kind] ?? "";
    return [`own-${kind}-namespace`, own !== "" && own !== host.namespaces[kind]];
  });

const kernelChecks = (wall: Wall, inside: View, host: View, mark: Mark | undefined): Check[] => [
  // A guest may boot the very kernel of its node, as some distributions have it: its boot is its own all the same.
  ...(wall === "vm" && inside.version === host.version && mark !== undefined
    ? []
    : [["kernel-differs", inside.version !== "" && inside.version !== host.version] as Check]),
  ["boot-differs", inside.bootId !== "" && inside.bootId !== host.bootId],
  ["boot-line-differs", inside.cmdline !== "" && inside.cmdline !== host.cmdline],
  ...markChecks(inside, mark),
];

const markChecks = (inside: View, mark: Mark | undefined): Check[] => {
  if (mark === undefined) return [];
  return "engine" in mark
    ? [
        ["kernel-is-gvisor", /gvisor/i.test(inside.version)],
        ["kernel-log-is-gvisors", /gvisor/i.test(inside.kernelLog)],
      ]
    : [["guest-is-of-this-revision", inside.cmdline.split(" ").includes(mark.parameter)]];
};
