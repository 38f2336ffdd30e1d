import { handlerKind, type RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";

/** What stands between a pod and the node: the kernel's namespaces, a kernel of its own in user space, a machine. */
export type Wall = "namespaces" | "kernel" | "machine" | "unknown";

/** The wall of a handler. A shim that is not ours says nothing of what it puts up. */
export const wallOf = (spec: Pick<RuntimeProfileSpec, "handler">): Wall => {
  switch (handlerKind(spec)) {
    case "runc":
    case "crun":
      return "namespaces";
    case "gvisor":
      return "kernel";
    case "kata":
    case "firecracker":
      return "machine";
    case "shim":
      return "unknown";
  }
};

/** Higher is stronger; undefined when nobody can say. */
const strength = (spec: Pick<RuntimeProfileSpec, "handler">): number | undefined => {
  const { gvisor } = spec.handler;
  switch (wallOf(spec)) {
    case "namespaces":
      return 1;
    case "kernel":
      // With the node's network stack, its GPU's driver, or flags that may say anything, gVisor is less than it could be.
      return gvisor?.network === "host" || gvisor?.nvproxy || (gvisor?.flags ?? []).length > 0 ? 2 : 3;
    case "machine":
      return 4;
    case "unknown":
      return undefined;
  }
};

/** True when a pod that shall stand behind `required` loses nothing behind `offered`. */
export const isAtLeast = (
  offered: Pick<RuntimeProfileSpec, "handler">,
  required: Pick<RuntimeProfileSpec, "handler">,
): boolean => {
  const [is, must] = [strength(offered), strength(required)];
  return is !== undefined && must !== undefined && is >= must;
};
