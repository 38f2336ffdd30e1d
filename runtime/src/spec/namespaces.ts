import type { NamespaceOption, PodSandboxConfig } from "@bulkhead/lib/gen/cri_pb.js";
import { NamespaceMode } from "@bulkhead/lib/gen/cri_pb.js";
import type { Namespaces } from "../handler/handler.ts";
import type { Linux } from "./oci.ts";

/** Where each namespace of a pod comes from. CRI's default (no options) is a shared PID namespace. */
export type PodNamespaces = {
  net: "pod" | "host";
  ipc: "pod" | "host";
  /** The hostname follows the network. */
  uts: "pod" | "host";
  pid: "pod" | "container" | "host";
};

export const podNamespaces = (config: PodSandboxConfig): PodNamespaces => {
  const options = config.linux?.securityContext?.namespaceOptions;
  const net = options?.network === NamespaceMode.NODE ? "host" : "pod";
  return {
    net,
    uts: net,
    ipc: options?.ipc === NamespaceMode.NODE ? "host" : "pod",
    pid: pidMode(options),
  };
};

const pidMode = (options: NamespaceOption | undefined): PodNamespaces["pid"] => {
  switch (options?.pid ?? NamespaceMode.POD) {
    case NamespaceMode.NODE:
      return "host";
    case NamespaceMode.CONTAINER:
    // Each container has its own, and a debug container looks into another's.
    case NamespaceMode.TARGET:
      return "container";
    default:
      return "pod";
  }
};

/** PID namespace of one container: its own, one that exists, or the host's. */
export type PidChoice = { use: "own" } | { use: "join"; path: string } | { use: "host" };

/** The namespaces of a container's spec (config-linux.md, "Namespaces"): what the pod pinned is joined by path. */
export const namespacesOf = (
  pinned: Namespaces,
  pid: PidChoice,
  cgroup: "v1" | "v2",
  privileged: boolean,
): Linux["namespaces"] => [
  { type: "mount" },
  ...(pinned.user === undefined ? [] : [{ type: "user" as const, path: pinned.user }]),
  ...(pid.use === "own" ? [{ type: "pid" as const }] : []),
  ...(pid.use === "join" ? [{ type: "pid" as const, path: pid.path }] : []),
  ...(pinned.net === undefined ? [] : [{ type: "network" as const, path: pinned.net }]),
  ...(pinned.ipc === undefined ? [] : [{ type: "ipc" as const, path: pinned.ipc }]),
  ...(pinned.uts === undefined ? [] : [{ type: "uts" as const, path: pinned.uts }]),
  // A privileged container manages the node's cgroups; any other sees its own as the root.
  ...(cgroup === "v2" && !privileged ? [{ type: "cgroup" as const }] : []),
];
