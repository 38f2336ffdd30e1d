import type { Duplex } from "node:stream";
import type { Namespaces } from "../handler/handler.ts";

/** A pod's namespaces and its place on the network, by the CNI specification 1.1. */
export interface Network {
  /** undefined when pods can be attached, else why not (reason NetworkPluginNotReady). Reads the CNI directory live. */
  notReady(): Promise<string | undefined>;
  /** Makes the namespaces asked for and pins them as files below `dir` (on tmpfs). Idempotent. */
  createNamespaces(dir: string, which: ("net" | "ipc" | "uts")[], hostname: string): Promise<Namespaces>;
  /** Unpins and removes; succeeds when they are gone. */
  removeNamespaces(dir: string): Promise<void>;
  /** CNI ADD of every plugin of the list. */
  attach(pod: NetworkPod, signal: AbortSignal): Promise<NetworkResult>;
  /**
   * CNI DEL; works when ADD failed half-way and when the namespace is gone (empty CNI_NETNS). With `onLeft`, a DEL that
   * fails for a pod of which no ADD has told a result is told there instead, and left to {@link detachFormer}.
   */
  detach(
    pod: NetworkPod,
    result: NetworkResult | undefined,
    signal: AbortSignal,
    onLeft?: (error: unknown) => void,
  ): Promise<void>;
  /**
   * DEL for every pod that was attached and is not among `known`: of an earlier boot, after which plugins still keep
   * their addresses, and those that were left. Returns how many are left, for a later try.
   */
  detachFormer(known: ReadonlySet<string>, signal: AbortSignal): Promise<number>;
  /** A connection made inside the namespace; "" means the host's. 127.0.0.1 first, then [::1]. */
  dial(netns: string, port: number, signal: AbortSignal): Promise<Duplex>;
}

export type NetworkPod = {
  id: string;
  name: string;
  namespace: string;
  uid: string;
  /** Path of the pinned network namespace; "" when it is gone. */
  netns: string;
  /** Where the runtime keeps CNI results of this pod. */
  dir: string;
  portMappings: {
    protocol: "tcp" | "udp" | "sctp";
    containerPort: number;
    hostPort: number;
    hostIp: string;
  }[];
  cgroupParent: string;
  annotations: Record<string, string>;
  /** Bits per second. */
  bandwidth?: { ingress?: number; egress?: number };
  /** For plugins with the capability "dns". */
  dns?: { servers: string[]; searches: string[]; options: string[] };
};

export type NetworkResult = {
  /** Addresses of the pod's own interface, IPv4 first, without prefix length. */
  ips: string[];
  /** CNI result as the last plugin printed it; passed back as prevResult at DEL. */
  raw: unknown;
  /** Network configuration that ADD used; DEL uses the same one. */
  config: unknown;
};
