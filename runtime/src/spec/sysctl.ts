import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Kernel settings that belong to a namespace, so that one pod's do not change another's or the host's. */
const namespaced: readonly { pattern: RegExp; namespace: "net" | "ipc" }[] = [
  { pattern: /^kernel\.(shm[a-z_]+|msg[a-z_]+|sem)$/, namespace: "ipc" },
  { pattern: /^fs\.mqueue\.[a-z_]+$/, namespace: "ipc" },
  { pattern: /^net(\.[a-zA-Z0-9_/-]+)+$/, namespace: "net" },
];

/** The sysctls of a pod, each known to be namespaced and the namespace to be the pod's own. */
export const sysctlsOf = (
  sysctls: Readonly<Record<string, string>>,
  own: { net: boolean; ipc: boolean },
): Record<string, string> =>
  Object.fromEntries(
    Object.entries(sysctls).map(([given, value]) => {
      // The kernel's own spelling with slashes names the same file.
      const key = given.includes(".") ? given : given.replaceAll("/", ".");
      const rule = namespaced.find(({ pattern }) => pattern.test(key));
      if (!rule || key.includes(".."))
        throw new RuntimeError("invalid-argument", `Cannot set sysctl "${given}": it is not namespaced`);
      if (!own[rule.namespace])
        throw new RuntimeError(
          "invalid-argument",
          `Cannot set sysctl "${given}": the pod shares the host's ${rule.namespace} namespace`,
        );
      if (/[\0\n]/.test(value))
        throw new RuntimeError("invalid-argument", `Cannot set sysctl "${given}": bad value`);
      return [key, value];
    }),
  );
