import { type HandlerKind, handlerKind, type RuntimeProfile } from "../api/runtime-profile.ts";

/** What stands between a pod and its node, in words. */
const walls: Record<HandlerKind, string> = {
  runc: "namespaces (runc)",
  crun: "namespaces (crun)",
  gvisor: "application kernel (gVisor)",
  kata: "virtual machine (Kata)",
  firecracker: "virtual machine (Firecracker)",
  shim: "shim",
};

/** The wall that a profile names. */
export const wallOf = (profile: RuntimeProfile): string => {
  const kind = handlerKind(profile.spec);
  const { shim } = profile.spec.handler;
  return kind === "shim" && shim ? `shim (${shim.runtimeType})` : walls[kind];
};

/** Of pods that no profile stands behind. */
export const noWall = "the node's default";
