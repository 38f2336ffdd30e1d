import type { CustomResourceDefinition } from "../api/crd.ts";
import { apiVersion } from "../api/group.ts";
import type { NodeRuntime } from "../api/node-runtime.ts";
import type { RuntimeProfile, RuntimeProfileSpec } from "../api/runtime-profile.ts";
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

export type Pod = KubeObject & {
  spec?: { runtimeClassName?: string; nodeName?: string };
  status?: { phase?: string };
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

export const customResourceDefinitions: Resource<CustomResourceDefinition & KubeObject> = {
  apiVersion: "apiextensions.k8s.io/v1",
  kind: "CustomResourceDefinition",
  plural: "customresourcedefinitions",
  namespaced: false,
};
