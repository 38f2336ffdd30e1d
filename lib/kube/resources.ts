import type { CustomResourceDefinition } from "../api/crd.ts";
import { apiVersion } from "../api/group.ts";
import type { NodeRuntime } from "../api/node-runtime.ts";
import type { RuntimeProfile, RuntimeProfileSpec, revisionedPart } from "../api/runtime-profile.ts";
import type { KubeObject, Resource } from "./object.ts";

/** The resources that Bulkhead reads and writes, each with as much of its type as is used. */

export const runtimeProfiles: Resource<RuntimeProfile> = {
  apiVersion,
  kind: "RuntimeProfile",
  plural: "runtimeprofiles",
  namespaced: false,
};

export const nodeRuntimes: Resource<NodeRuntime> = {
  apiVersion,
  kind: "NodeRuntime",
  plural: "noderuntimes",
  namespaced: false,
};

/** A Node without spec and status: who a node is and its labels. */
export const nodes: Resource<KubeObject> = {
  apiVersion: "v1",
  kind: "Node",
  plural: "nodes",
  namespaced: false,
  metadataOnly: true,
};

/** A Node with its taints. */
export type TaintedNode = KubeObject & { spec?: { taints?: { key: string; effect: string }[] } };

export const taintedNodes: Resource<TaintedNode> = {
  apiVersion: "v1",
  kind: "Node",
  plural: "nodes",
  namespaced: false,
};

/** A Namespace without spec and status: its name and labels. */
export const namespaces: Resource<KubeObject> = {
  apiVersion: "v1",
  kind: "Namespace",
  plural: "namespaces",
  namespaced: false,
  metadataOnly: true,
};

export type Pod = KubeObject & {
  spec?: { runtimeClassName?: string; nodeName?: string };
  status?: { phase?: string };
};

export const hasEnded = ({ status }: Pod): boolean =>
  status?.phase === "Succeeded" || status?.phase === "Failed";

type SecurityContext = {
  privileged?: boolean;
  procMount?: string;
  capabilities?: { add?: string[] };
  seccompProfile?: { type: string };
  appArmorProfile?: { type: string };
  seLinuxOptions?: { type?: string; user?: string; role?: string; level?: string };
};
type JudgedContainer = { securityContext?: SecurityContext };

/** As much of a pod as decides whether it stands behind its wall. */
export type JudgedPod = Omit<Pod, "spec"> & {
  spec?: NonNullable<Pod["spec"]> & {
    hostPID?: boolean;
    hostIPC?: boolean;
    hostNetwork?: boolean;
    volumes?: { hostPath?: object }[];
    securityContext?: Pick<SecurityContext, "seccompProfile" | "appArmorProfile" | "seLinuxOptions">;
    containers?: JudgedContainer[];
    initContainers?: JudgedContainer[];
    ephemeralContainers?: JudgedContainer[];
  };
};

export const pods: Resource<Pod> = { apiVersion: "v1", kind: "Pod", plural: "pods", namespaced: true };

/** node.k8s.io/v1 RuntimeClass. */
export type RuntimeClass = KubeObject & {
  handler: string;
  overhead?: { podFixed: Record<string, string> };
  scheduling?: {
    nodeSelector?: Record<string, string>;
    tolerations?: NonNullable<RuntimeProfileSpec["tolerations"]>;
  };
};

export const runtimeClasses: Resource<RuntimeClass> = {
  apiVersion: "node.k8s.io/v1",
  kind: "RuntimeClass",
  plural: "runtimeclasses",
  namespaced: false,
};

/** An object of admissionregistration.k8s.io/v1: a policy of CEL expressions, or the binding that puts it in force. */
export type AdmissionObject = KubeObject & { spec: Record<string, unknown> };

const admission = (kind: string, plural: string): Resource<AdmissionObject> => ({
  apiVersion: "admissionregistration.k8s.io/v1",
  kind,
  plural,
  namespaced: false,
});
export const validatingPolicies = admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies");
export const validatingBindings = admission(
  "ValidatingAdmissionPolicyBinding",
  "validatingadmissionpolicybindings",
);
/** Kubernetes 1.36 and later. */
export const mutatingPolicies = admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies");
export const mutatingBindings = admission(
  "MutatingAdmissionPolicyBinding",
  "mutatingadmissionpolicybindings",
);

/** apps/v1 ControllerRevision of a RuntimeProfile. */
export type ControllerRevision = KubeObject & {
  revision: number;
  data: ReturnType<typeof revisionedPart>;
};

export const controllerRevisions: Resource<ControllerRevision> = {
  apiVersion: "apps/v1",
  kind: "ControllerRevision",
  plural: "controllerrevisions",
  namespaced: true,
};

/** apps/v1 DaemonSet, as much of it as tells how its pods are replaced. */
export type DaemonSet = KubeObject & {
  spec?: {
    updateStrategy?: { type?: string };
    template?: { spec?: { containers?: { name: string; env?: { name: string; value?: string }[] }[] } };
  };
  status?: { observedGeneration?: number; desiredNumberScheduled?: number };
};

export const daemonSets: Resource<DaemonSet> = {
  apiVersion: "apps/v1",
  kind: "DaemonSet",
  plural: "daemonsets",
  namespaced: true,
};

/** apps/v1 ControllerRevision of a DaemonSet: a template that its pods had or shall have. */
export const templateRevisions: Resource<KubeObject & { revision: number }> = {
  apiVersion: controllerRevisions.apiVersion,
  kind: controllerRevisions.kind,
  plural: controllerRevisions.plural,
  namespaced: true,
};

/** A pod of the node agents' DaemonSet. */
export type AgentPod = Pod & {
  status?: {
    conditions?: { type: string; status: string; lastTransitionTime?: string }[];
    containerStatuses?: { ready: boolean }[];
  };
};

export const agentPods: Resource<AgentPod> = { ...pods } as Resource<AgentPod>;

/** By which the pods of the node agents are found, and the revisions of their DaemonSet. */
export const agentSelector = "app.kubernetes.io/component=node-agent";

export const customResourceDefinitions: Resource<CustomResourceDefinition & KubeObject> = {
  apiVersion: "apiextensions.k8s.io/v1",
  kind: "CustomResourceDefinition",
  plural: "customresourcedefinitions",
  namespaced: false,
};
