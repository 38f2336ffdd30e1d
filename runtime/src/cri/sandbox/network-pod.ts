import { isIP } from "node:net";
import { type PodSandboxConfig, Protocol } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parseQuantity } from "@bulkhead/lib/std/quantity.ts";
import type { NetworkPod } from "../../network/network.ts";
import { requireArgs } from "../../network/plan.ts";
import type { Pod } from "../../pod/state.ts";
import { podNamespaces } from "../../spec/namespaces.ts";
import { podDir, type Runtime } from "../runtime.ts";

const protocols = { [Protocol.TCP]: "tcp", [Protocol.UDP]: "udp", [Protocol.SCTP]: "sctp" } as const;

/**
 * Refuses what no plugin could map: the same plugins are asked to unmap it, so that a pod with such a mapping could
 * not be removed either.
 */
const requirePortMappings = (config: PodSandboxConfig): void => {
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

const directions = { ingress: "kubernetes.io/ingress-bandwidth", egress: "kubernetes.io/egress-bandwidth" };
/** As every engine takes them: below, a pod would stand still; above, nothing is meant. */
const [leastBits, mostBits] = [1e3, 1e15];

const bitsOf = (config: PodSandboxConfig, annotation: string): number | undefined => {
  const bits = Math.ceil(parseQuantity(config.annotations[annotation] ?? "") ?? Number.NaN);
  return bits >= leastBits && bits <= mostBits ? bits : undefined;
};

/** Refuses a bandwidth that cannot be read: a pod that was to be slowed down must not run without a limit. */
const requireBandwidth = (config: PodSandboxConfig): void => {
  for (const annotation of Object.values(directions))
    if (config.annotations[annotation] !== undefined && bitsOf(config, annotation) === undefined)
      throw new RuntimeError(
        "invalid-argument",
        `Cannot limit the pod's network by annotation ${annotation}: "${config.annotations[annotation].slice(0, 64)}" is no quantity from 1k to 1P bits per second, such as 10M`,
      );
};

/** Refuses a pod whose network could be neither made nor taken down; one on the node's has none. */
export const requireNetworkPod = (config: PodSandboxConfig): void => {
  if (podNamespaces(config).net === "host") return;
  const { name = "", namespace = "", uid = "" } = config.metadata ?? {};
  requireArgs({ name, namespace, uid });
  requirePortMappings(config);
  requireBandwidth(config);
};

/** In bits per second. What cannot be read was refused when the pod was made. */
const bandwidthOf = (config: PodSandboxConfig): NonNullable<NetworkPod["bandwidth"]> => {
  const [ingress, egress] = [bitsOf(config, directions.ingress), bitsOf(config, directions.egress)];
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
