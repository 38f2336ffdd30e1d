import { readFile, writeFile } from "node:fs/promises";

/** Settings of the whole machine that a kubelet changes when it starts (pkg/kubelet/cm, setupKernelTunables). */
const changed = [
  "vm/overcommit_memory",
  "vm/panic_on_oom",
  "kernel/panic",
  "kernel/panic_on_oops",
  "kernel/keys/root_maxkeys",
  "kernel/keys/root_maxbytes",
];

/** Values by path below /proc/sys. */
export type Sysctls = Readonly<Record<string, string>>;

/** What the machine has now. */
export const readSysctls = async (): Promise<Sysctls> =>
  Object.fromEntries(
    await Promise.all(
      changed.map(async (path) => [path, (await readFile(`/proc/sys/${path}`, "utf8")).trim()] as const),
    ),
  );

/** Puts values back. */
export const writeSysctls = async (sysctls: Sysctls): Promise<void> => {
  for (const [path, value] of Object.entries(sysctls)) await writeFile(`/proc/sys/${path}`, value);
};
