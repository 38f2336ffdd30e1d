import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { handlerKind, type RuntimeProfile, runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { RuntimeClass } from "@bulkhead/lib/kube/resources.ts";
import { noWall, wallOf } from "@bulkhead/lib/view/wall.ts";
import type { Node, Pod } from "./cluster.ts";
import { harmless, type Paint, table } from "./table.ts";

/** `kubectl bulkhead explain POD`: the way from the kubelet to the pod's processes, hop by hop. */

export type Hop = {
  what: string;
  version: string;
  /** Seconds from the kubelet's first sight of the pod until this hop was done; the API tells whole seconds. */
  afterSeconds?: number;
  does: string;
};

export type Explanation = {
  namespace: string;
  pod: string;
  phase: string;
  node: string;
  runtimeClass: string;
  profile: string;
  wall: string;
  /** Kernel release of the node, and the one that the canary saw behind the wall. */
  kernel: { node: string; behind: string };
  proven: { passed: boolean; at: string; assertions: string[] } | undefined;
  hops: Hop[];
  /** What is not as it should be. */
  warnings: string[];
};

export type PodFacts = {
  pod: Pod;
  node?: Node;
  nodeRuntime?: NodeRuntime;
  runtimeClass?: RuntimeClass;
  profile?: RuntimeProfile;
};

/** The programs between the CRI and the process, as each kind of wall has them. */
const innerHops = (profile: RuntimeProfile): { what: string; does: string }[] => {
  const kind = handlerKind(profile.spec);
  const { gvisor, kata, shim } = profile.spec.handler;
  switch (kind) {
    case "runc":
    case "crun":
      return [
        { what: "conmon", does: "holds the container's output and exit code, one for each container" },
        { what: kind, does: "makes namespaces, cgroup and seccomp filter, starts the process, and ends" },
      ];
    case "gvisor":
      return [
        { what: "containerd-shim-runsc-v1", does: "one for the pod; speaks shim v2 over ttrpc" },
        {
          what: "runsc (sentry)",
          does: `answers the pod's system calls; platform ${gvisor?.platform}, network ${gvisor?.network}, writes to ${gvisor?.overlay}`,
        },
      ];
    case "kata":
      return [
        { what: "containerd-shim-kata-v2", does: "one for the pod; speaks shim v2 over ttrpc" },
        { what: kata?.hypervisor ?? "hypervisor", does: "the pod's virtual machine" },
        { what: "kata-agent", does: "starts the containers inside the guest" },
      ];
    case "firecracker":
      return [
        { what: "containerd-shim-kata-v2", does: "one for the pod; speaks shim v2 over ttrpc" },
        { what: "firecracker", does: "the pod's virtual machine" },
        { what: "kata-agent", does: "starts the containers inside the guest" },
      ];
    case "shim":
      return [{ what: shim?.runtimeType ?? "shim", does: "one for the pod; speaks shim v2 over ttrpc" }];
  }
};

export const explain = ({ pod, node, nodeRuntime, runtimeClass, profile }: PodFacts): Explanation => {
  const { status = {}, spec = {} } = pod;
  const begun = status.startTime ? Date.parse(status.startTime) : undefined;
  const since = (time: string | undefined): { afterSeconds?: number } =>
    time && begun !== undefined ? { afterSeconds: Math.max(0, (Date.parse(time) - begun) / 1000) } : {};
  const whenTrue = (type: string): string | undefined => {
    const condition = status.conditions?.find((each) => each.type === type);
    return condition?.status === "True" ? condition.lastTransitionTime : undefined;
  };
  const engine = nodeRuntime?.status?.engine;
  const reported = nodeRuntime?.status?.profiles?.find((each) => each.name === profile?.metadata.name);
  const info = node?.status?.nodeInfo;
  const ours = profile !== undefined && profile.spec.engine === "bulkhead";
  const sandbox = since(whenTrue("PodReadyToStartContainers"));

  const hops: Hop[] = [];
  if (spec.nodeName)
    hops.push({
      what: "kubelet",
      version: info?.kubeletVersion ?? "",
      ...since(status.startTime),
      does: `on ${spec.nodeName}; asks for a pod with handler "${runtimeClass?.handler ?? ""}"`,
    });
  if (engine?.fronted)
    hops.push({
      what: "bulkhead runtime",
      version: nodeRuntime?.status?.runtimeVersion ?? "",
      ...(ours ? sandbox : {}),
      does: ours
        ? "makes network and sandbox, unpacks the image, runs the pod itself"
        : `passes the call on to ${engine.name}`,
    });
  if (!ours && spec.nodeName)
    hops.push({
      what: engine?.name ?? info?.containerRuntimeVersion.split("://")[0] ?? "the node's engine",
      version: engine?.version ?? info?.containerRuntimeVersion.split("://")[1] ?? "",
      ...sandbox,
      does: "makes network and sandbox, unpacks the image, runs the pod",
    });
  if (profile && spec.nodeName)
    for (const hop of innerHops(profile))
      hops.push({ ...hop, version: reported?.revision ? `revision ${reported.revision}` : "" });
  for (const container of status.containerStatuses ?? []) {
    const { running, waiting } = container.state ?? {};
    hops.push({
      what: `container ${container.name}`,
      version: "",
      ...since(running?.startedAt),
      does: running
        ? (container.containerID ?? "")
        : waiting
          ? `waits: ${waiting.reason ?? ""} ${waiting.message ?? ""}`.trim()
          : "has ended",
    });
  }

  const warnings: string[] = [];
  if (spec.runtimeClassName && !profile)
    warnings.push(
      runtimeClass
        ? `RuntimeClass "${spec.runtimeClassName}" belongs to no RuntimeProfile: Bulkhead proves nothing of it`
        : `RuntimeClass "${spec.runtimeClassName}" does not exist`,
    );
  if (!spec.runtimeClassName)
    warnings.push("The pod names no RuntimeClass: it runs as the node runs anything");
  if (!spec.nodeName) {
    const scheduled = status.conditions?.find((each) => each.type === "PodScheduled");
    warnings.push(`The pod is on no node yet${scheduled?.message ? `: ${scheduled.message}` : ""}`);
  } else if (profile) {
    if (!reported)
      warnings.push(`The agent of ${spec.nodeName} has not reported on profile "${profile.metadata.name}"`);
    else if (reported.canary?.passed === false)
      warnings.push(`The last canary on ${spec.nodeName} failed: ${reported.message}`);
    else if (!reported.canary) warnings.push(`No canary has run on ${spec.nodeName} yet`);
  }
  return {
    namespace: pod.metadata.namespace ?? "",
    pod: pod.metadata.name,
    phase: status.phase ?? "",
    node: spec.nodeName ?? "",
    runtimeClass: spec.runtimeClassName ?? "",
    profile: profile?.metadata.name ?? "",
    wall: profile ? wallOf(profile) : noWall,
    kernel: { node: info?.kernelVersion ?? "", behind: reported?.canary?.kernel ?? "" },
    proven: reported?.canary
      ? { passed: reported.canary.passed, at: reported.canary.at, assertions: reported.canary.assertions }
      : undefined,
    hops,
    warnings,
  };
};

/** The profile whose RuntimeClass the pod names. */
export const profileOf = (pod: Pod, profiles: RuntimeProfile[]): RuntimeProfile | undefined =>
  profiles.find((profile) => runtimeClassName(profile) === pod.spec?.runtimeClassName);

export const explanationText = (is: Explanation, paint: Paint): string => {
  const proof = is.proven
    ? `${is.proven.passed ? "passed" : "failed"} at ${is.proven.at}: ${is.proven.assertions.join(", ")}`
    : "";
  const facts = [
    ["Pod", `${is.namespace}/${is.pod} (${is.phase})`],
    ["Wall", is.wall],
    ["Profile", is.profile],
    ["RuntimeClass", is.runtimeClass],
    [
      "Kernel",
      [is.kernel.node, is.kernel.behind && `behind the wall ${is.kernel.behind}`].filter(Boolean).join("; "),
    ],
    ["Proof", proof],
  ]
    .filter(([, value]) => value)
    .map(([key = "", value = ""]) => `${paint(key.padEnd(15), "faint")}${harmless(value)}\n`)
    .join("");
  const hops = table(
    ["HOP", "VERSION", "AFTER", "WHAT IT DOES"],
    is.hops.map((hop, depth) => [
      `${"  ".repeat(Math.min(depth, 6))}${hop.what}`,
      hop.version,
      hop.afterSeconds === undefined ? "" : `${hop.afterSeconds}s`,
      hop.does,
    ]),
    paint,
  );
  const warnings = is.warnings.map((text) => `${paint("!", "warn")} ${harmless(text)}\n`).join("");
  return `${facts}\n${hops}${warnings ? `\n${warnings}` : ""}`;
};
