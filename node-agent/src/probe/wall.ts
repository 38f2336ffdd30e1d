import { z } from "zod";

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
    namespaces: Object.fromEntries(namespaceKinds.map((kind) => [kind, lines.get(`ns.${kind}`) ?? ""])),
  };
}

/** What shows that a kernel is the wall's own: gVisor says its name, a guest the parameter that it was booted with. */
export type Mark = { engine: "gvisor" } | { parameter: string };

/** Compares the canary's view with the host's. A wall that cannot be shown counts as broken. */
export function judge(wall: Wall, inside: View, host: View, mark?: Mark): Verdict {
  const checks: [name: string, holds: boolean][] =
    wall === "namespaces"
      ? namespaceKinds.map((kind) => {
          const own = inside.namespaces[kind] ?? "";
          return [`own-${kind}-namespace`, own !== "" && own !== host.namespaces[kind]];
        })
      : [
          ["kernel-differs", inside.version !== "" && inside.version !== host.version],
          // gVisor has no boot id; a virtual machine has one.
          ["boot-differs", inside.bootId !== host.bootId && (wall !== "vm" || inside.bootId !== "")],
          ...markChecks(inside, mark),
        ];
  return {
    assertions: checks.filter(([, holds]) => holds).map(([name]) => name),
    broken: checks.filter(([, holds]) => !holds).map(([name]) => name),
  };
}

const markChecks = (inside: View, mark: Mark | undefined): [name: string, holds: boolean][] => {
  if (mark === undefined) return [];
  return "engine" in mark
    ? [["kernel-is-gvisor", /gvisor/i.test(inside.version)]]
    : [["guest-is-of-this-revision", inside.cmdline.split(" ").includes(mark.parameter)]];
};
