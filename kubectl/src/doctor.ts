import { labels } from "@bulkhead/lib/api/group.ts";
import { runtimeClassName } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Lease } from "@bulkhead/lib/kube/lease.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { adviceOn } from "@bulkhead/lib/view/advice.ts";
import { age } from "@bulkhead/lib/view/age.ts";
import { isWrong } from "@bulkhead/lib/view/condition.ts";
import { conditionOf } from "@bulkhead/lib/view/profile.ts";
import type { Seen } from "./cluster.ts";
import { harmless, type Paint } from "./table.ts";
import { proofsOf } from "./tenants.ts";

/** `kubectl bulkhead doctor`: what is wrong on this cluster or node, and how to mend it. */

export type Finding = {
  severity: "error" | "warning";
  /** The object: kind/name. */
  where: string;
  reason: string;
  what: string;
  mend: string;
  /** The node that a finding about another object concerns. */
  node?: string;
};

export type Examined = Seen & {
  /** Where Bulkhead is installed. */
  namespace: string;
  /** The operator's Lease; undefined when there is none. */
  lease?: Lease;
  /** An agent that is silent for longer is taken for ill. */
  staleAfterMs: number;
};

const finding = (
  where: string,
  reason: string,
  what: string,
  severity: Finding["severity"] = "error",
): Finding => ({
  severity,
  where,
  reason,
  what,
  mend: adviceOn(reason),
});

/** A cluster without Bulkhead's resources: nothing else can be asked. */
export const notInstalled: Finding = {
  severity: "error",
  where: "CustomResourceDefinition/runtimeprofiles.bulkhead.dev",
  reason: "NotInstalled",
  what: "the cluster does not know RuntimeProfiles",
  mend: "helm install bulkhead, or point --kubeconfig at the right cluster",
};

const ofOperator = ({ lease, now }: Examined): Finding[] => {
  const renewed = lease?.spec?.renewTime;
  const silent = renewed ? now - Date.parse(renewed) : undefined;
  if (lease?.spec?.holderIdentity && silent !== undefined && silent < 60_000) return [];
  return [
    {
      severity: "error",
      where: "Lease/bulkhead-operator",
      reason: "NoOperator",
      what:
        silent === undefined || !lease?.spec?.holderIdentity
          ? "no operator works: nobody holds its Lease"
          : `no operator works: its Lease was last renewed ${age(silent)} ago`,
      mend: "kubectl -n bulkhead-system describe deployment -l app.kubernetes.io/component=operator",
    },
  ];
};

const ofProfiles = ({ profiles }: Examined): Finding[] =>
  profiles.flatMap((profile) => {
    const where = `RuntimeProfile/${profile.metadata.name}`;
    const found: Finding[] = [];
    const told = new Set<string>();
    const tell = (type: string, bad: string, severity: Finding["severity"] = "error") => {
      const condition = conditionOf(profile, type);
      if (condition?.status !== bad || !isWrong(condition) || told.has(condition.reason)) return;
      told.add(condition.reason);
      found.push(finding(where, condition.reason, condition.message, severity));
    };
    tell("Accepted", "False");
    tell("RuntimeClassReady", "False");
    tell("Degraded", "True");
    tell("TenancyEnforced", "False");
    if (found.length === 0) tell("Ready", "False", "warning");
    const progressing = conditionOf(profile, "Progressing");
    if (progressing && ["Paused", "InUse", "RemovingFromNodes"].includes(progressing.reason))
      found.push(finding(where, progressing.reason, progressing.message, "warning"));
    for (const node of profile.status?.failedNodes ?? [])
      found.push(
        finding(`Node/${node.name}`, node.reason, `profile "${profile.metadata.name}": ${node.message}`),
      );
    if (!profile.status)
      found.push({
        severity: "warning",
        where,
        reason: "NotSeenYet",
        what: "the operator has not looked at it",
        mend: "see NoOperator, or wait a moment",
      });
    return found;
  });

const ofNodes = ({ nodeRuntimes, nodes, now, staleAfterMs }: Examined): Finding[] => {
  const exist = new Set(nodes.map((node) => node.metadata.name));
  return nodeRuntimes.flatMap((runtime) => {
    const { name } = runtime.metadata;
    const where = `Node/${name}`;
    if (!exist.has(name)) return [];
    const heartbeat = runtime.status?.heartbeat;
    if (!heartbeat) return [finding(where, "NoReport", "its agent has never reported")];
    const silent = now - Date.parse(heartbeat);
    const found: Finding[] = [];
    // A profile's status names twenty of its failed nodes: of the others their own reports tell.
    for (const { name: profile, phase, revision, attemptedRevision, reason, message } of runtime.status
      ?.profiles ?? []) {
      const wanted = runtime.spec.profiles.find((each) => each.name === profile)?.revision;
      if ((phase === "Failed" || phase === "RolledBack") && (attemptedRevision ?? revision) === wanted)
        found.push(finding(where, reason, `profile "${profile}": ${message}`));
    }
    if (silent > staleAfterMs)
      found.push(finding(where, "AgentSilent", `its agent was last heard ${age(silent)} ago`));
    for (const { type, reason, message } of (runtime.status?.conditions ?? []).filter(isWrong))
      if (type === "RolledBack")
        found.push(finding(where, reason, `put back to its last good state: ${message}`, "warning"));
      else if (type !== "Fronting") found.push(finding(where, reason, `${type}: ${message}`));
    return found;
  });
};

/** Agents of different versions: a rollout of Bulkhead itself that stands still. */
const ofVersions = ({ nodeRuntimes }: Examined): Finding[] => {
  const versions = new Map<string, number>();
  for (const { status } of nodeRuntimes)
    if (status?.agentVersion) versions.set(status.agentVersion, (versions.get(status.agentVersion) ?? 0) + 1);
  if (versions.size < 2) return [];
  return [
    {
      severity: "warning",
      where: "DaemonSet/node-agent",
      reason: "MixedVersions",
      what: `agents of ${versions.size} versions: ${[...versions].map(([v, n]) => `${v} on ${n}`).join(", ")}`,
      mend: "kubectl bulkhead rollout status",
    },
  ];
};

const ofClasses = ({ runtimeClasses, profiles }: Examined): Finding[] => {
  const names = new Set(profiles.map((profile) => profile.metadata.name));
  return runtimeClasses.flatMap((runtimeClass) => {
    const owner = runtimeClass.metadata.labels?.[labels.profile];
    return owner === undefined || names.has(owner)
      ? []
      : [
          {
            severity: "warning",
            where: `RuntimeClass/${runtimeClass.metadata.name}`,
            reason: "OrphanRuntimeClass",
            what: `it was made for RuntimeProfile "${owner}", which does not exist`,
            mend: `kubectl delete runtimeclass ${runtimeClass.metadata.name}, once no pod names it`,
          } satisfies Finding,
        ];
  });
};

/** Pods that want a wall and do not have it. */
const ofPods = (seen: Examined): Finding[] => {
  const profiles = new Map(seen.profiles.map((profile) => [runtimeClassName(profile), profile]));
  const isProven = proofsOf(seen);
  return seen.pods.flatMap((pod): Finding[] => {
    const profile = profiles.get(pod.spec?.runtimeClassName ?? "");
    const { phase } = pod.status ?? {};
    if (!profile || phase === "Succeeded" || phase === "Failed") return [];
    const where = `Pod/${pod.metadata.namespace}/${pod.metadata.name}`;
    const { nodeName } = pod.spec ?? {};
    const scheduled = pod.status?.conditions?.find((each) => each.type === "PodScheduled");
    if (!nodeName && scheduled?.status === "False")
      return [
        {
          severity: "warning",
          where,
          reason: "Unschedulable",
          what: scheduled.message ?? "no node takes it",
          mend: `kubectl bulkhead status ${profile.metadata.name}: pods go only where its canary passed`,
        },
      ];
    if (nodeName && phase === "Running" && !isProven(nodeName, profile.metadata.name))
      return [
        {
          severity: "error",
          where,
          reason: "UnprovenWall",
          node: nodeName,
          what: `it runs on ${nodeName}, where profile "${profile.metadata.name}" is not proven now`,
          mend: `kubectl bulkhead status ${profile.metadata.name}; drain the pod if its tenant must not share a kernel`,
        },
      ];
    return [];
  });
};

/** So many pods are named. */
const mostPods = 10;

/** Everything that is wrong, worst first; `node` narrows it to one node. Errors: not-found, for a node that is not there. */
export const diagnose = (seen: Examined, node?: string): Finding[] => {
  const known = [...seen.nodes, ...seen.nodeRuntimes].some(({ metadata }) => metadata.name === node);
  if (node !== undefined && !known)
    throw new RuntimeError("not-found", `Cannot find node "${node}": the cluster has none of that name`);
  const concerns = (each: Finding): boolean =>
    node === undefined || each.node === node || each.where === `Node/${node}`;
  const found = [
    ...ofOperator(seen),
    ...ofProfiles(seen),
    ...ofNodes(seen),
    ...ofVersions(seen),
    ...ofClasses(seen),
    ...ofPods(seen).filter(concerns).slice(0, mostPods),
  ].filter(concerns);
  const unique = new Map(found.map((each) => [`${each.where} ${each.reason} ${each.what}`, each]));
  return [...unique.values()]
    .map((each) => ({ ...each, mend: each.mend.replaceAll("bulkhead-system", seen.namespace) }))
    .sort((a, b) => Number(a.severity === "warning") - Number(b.severity === "warning"));
};

export const diagnosisText = (findings: Finding[], paint: Paint): string =>
  findings.length === 0
    ? `${paint("✓", "good")} Nothing is wrong that could be seen from here.\n`
    : findings
        .map(
          ({ severity, where, reason, what, mend }) =>
            `${paint(severity === "error" ? "✗" : "!", severity === "error" ? "bad" : "warn")} ${paint(harmless(where), "strong")} ${harmless(reason)}\n    ${harmless(what)}\n    ${paint("→", "faint")} ${mend}\n`,
        )
        .join("");
