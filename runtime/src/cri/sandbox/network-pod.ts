import { isIP } from "node:net";
import { type PodSandboxConfig, Protocol } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { NetworkPod } from "../../network/network.ts";
import type { Pod } from "../../pod/state.ts";
import { podDir, type Runtime } from "../runtime.ts";

const protocols = { [Protocol.TCP]: "tcp", [Protocol.UDP]: "udp", [Protocol.SCTP]: "sctp" } as const;

/**
 * Refuses what no plugin could map: the same plugins are asked to unmap it, so that a pod with such a mapping could
 * not be removed either.
 */
export const requirePortMappings = (config: PodSandboxConfig): void => {
  for (const { protocol, containerPort, hostPort, hostIp } of config.portMappings) {
    if (hostPort === 0) continue;
    const bad = (what: string): RuntimeError =>
      new RuntimeError("invalid-argument", `Cannot map host port ${hostPort}: ${what}`);
    if (hostPort < 0 || hostPort > 65_535) throw bad("not a port");
    if (containerPort < 1 || containerPort > 65_535) throw bad(`container port ${containerPort} is none`);
    if (protocols[protocol] === undefined) throw bad(`protocol ${protocol} is not known`);
    if (hostIp !== "" && isIP(hostIp) === 0) throw bad(`"${hostIp}" is not an address`);
  }
};

const quantity = (text: string | undefined): number | undefined => {
  const [, digits, unit = ""] = /^(\d+)([kMG]?)$/.exec(text ?? "") ?? [];
  return digits === undefined
    ? undefined
    : Number(digits) * { "": 1, k: 1e3, M: 1e6, G: 1e9 }[unit as "" | "k" | "M" | "G"];
};

/** kubernetes.io/ingress-bandwidth and egress-bandwidth, in bits per second. */
const bandwidthOf = (config: PodSandboxConfig): NonNullable<NetworkPod["bandwidth"]> => {
  const ingress = quantity(config.annotations["kubernetes.io/ingress-bandwidth"]);
  const egress = quantity(config.annotations["kubernetes.io/egress-bandwidth"]);
  return { ...(ingress !== undefined && { ingress }), ...(egress !== undefined && { egress }) };
};

/** A pod as CNI sees it. A mapping without a host port maps nothing. */
export const networkPod = (runtime: Pick<Runtime, "stateDir">, pod: Pod): NetworkPod => {
  const bandwidth = bandwidthOf(pod.config);
  return {
    id: pod.id,
    name: pod.config.metadata?.name ?? "",
    namespace: pod.config.metadata?.namespace ?? "",
    uid: pod.config.metadata?.uid ?? "",
    netns: pod.held.namespaces?.net ?? "",
    dir: podDir(runtime, pod.id),
    portMappings: pod.config.portMappings
      .filter((mapping) => mapping.hostPort > 0)
      .map((mapping) => ({
        protocol: protocols[mapping.protocol],
        containerPort: mapping.containerPort,
        hostPort: mapping.hostPort,
        hostIp: mapping.hostIp,
      })),
    cgroupParent: pod.config.linux?.cgroupParent ?? "",
    annotations: pod.config.annotations,
    ...(Object.keys(bandwidth).length > 0 && { bandwidth }),
  };
};
