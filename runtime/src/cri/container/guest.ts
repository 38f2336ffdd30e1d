import type { Pod } from "../../pod/state.ts";
import type { HostFacts } from "../../spec/host.ts";

/** Whether the pod is a virtual machine. */
export const isVm = ({ handler }: Pick<Pod, "handler">): boolean =>
  handler.kind === "shim" && handler.wall === "vm";

/**
 * What a container's limits may ask of its kernel. Of a guest's swap nothing: there is none, and a guest's kernel
 * without an account of it refuses the container.
 */
export const limitsOf = (pod: Pick<Pod, "handler">, host: HostFacts): HostFacts =>
  isVm(pod) ? { ...host, swapAccounting: false } : host;
