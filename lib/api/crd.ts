import * as z from "zod";
import { group, version } from "./group.ts";
import { NodeRuntimeSpec, NodeRuntimeStatus } from "./node-runtime.ts";
import { RuntimeProfileSpec, RuntimeProfileStatus } from "./runtime-profile.ts";

/**
 * CustomResourceDefinitions (apiextensions.k8s.io/v1) from the zod types: structural OpenAPI v3 schemas with defaults,
 * CEL rules and list map keys. Pure; test/dev/generate.ts writes them to crds/.
 */

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type Schema = { [key: string]: Json };

/** What a structural schema may carry; all else that JSON Schema has is dropped. */
const kept = new Set([
  "type",
  "format",
  "description",
  "default",
  "enum",
  "pattern",
  "minimum",
  "maximum",
  "minLength",
  "maxLength",
  "minItems",
  "maxItems",
  "maxProperties",
  "required",
  "x-kubernetes-validations",
  "x-kubernetes-list-type",
  "x-kubernetes-list-map-keys",
  "x-kubernetes-map-type",
  "x-kubernetes-int-or-string",
]);

const isSchema = (value: Json | undefined): value is Schema =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** JSON Schema → structural schema: no additionalProperties: false, no propertyNames, no bounds of JavaScript's own. */
const structural = (schema: Schema): Schema => {
  const out: Schema = {};
  for (const [key, value] of Object.entries(schema)) if (kept.has(key)) out[key] = value;
  if (out["x-kubernetes-int-or-string"] === true) {
    // The API server knows this pair as one type; bounds are CEL's.
    out.anyOf = [{ type: "integer" }, { type: "string" }];
    delete out.type;
    return out;
  }
  if (schema.anyOf || schema.oneOf || schema.allOf) {
    throw new Error("Cannot make a structural schema of a union that is not x-kubernetes-int-or-string");
  }
  if (out.type === "integer") {
    out.format = "int64";
    if (out.minimum === Number.MIN_SAFE_INTEGER) delete out.minimum;
    if (out.maximum === Number.MAX_SAFE_INTEGER) delete out.maximum;
  }
  // The API server checks a date-time by its format; zod's pattern of it would only cost.
  if (out.format === "date-time") delete out.pattern;
  if (isSchema(schema.properties)) {
    out.properties = Object.fromEntries(
      Object.entries(schema.properties).map(([name, value]) => [name, structural(value as Schema)]),
    );
  }
  if (isSchema(schema.items)) out.items = structural(schema.items);
  if (isSchema(schema.additionalProperties))
    out.additionalProperties = structural(schema.additionalProperties);
  return out;
};

/** The structural schema of a zod type, as users write it: what has a default need not be there. */
export const structuralSchema = (type: z.ZodType): Schema =>
  structural(z.toJSONSchema(type, { io: "input" }) as Schema);

type Column = { name: string; type: string; jsonPath: string; description: string; priority?: number };

type Definition = {
  kind: string;
  plural: string;
  singular: string;
  shortNames: string[];
  description: string;
  /** Restrictions of metadata.name beyond those of the API server. */
  name?: Schema;
  spec: z.ZodType;
  status: z.ZodType;
  columns: Column[];
};

const condition = (type: string) => `.status.conditions[?(@.type=="${type}")].status`;

const definitions: Definition[] = [
  {
    kind: "RuntimeProfile",
    plural: "runtimeprofiles",
    singular: "runtimeprofile",
    shortNames: ["rtp"],
    description:
      "RuntimeProfile says which wall a workload stands behind, on which nodes, and how changes reach them.",
    // The name is the RuntimeClass' handler, a label's name and a file's name.
    name: { type: "string", maxLength: 63, pattern: "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" },
    spec: RuntimeProfileSpec,
    status: RuntimeProfileStatus,
    columns: [
      {
        name: "Nodes",
        type: "integer",
        jsonPath: ".status.nodes.desired",
        description: "Nodes that the profile selects",
      },
      {
        name: "Ready",
        type: "integer",
        jsonPath: ".status.nodes.ready",
        description: "Nodes whose canary passed",
      },
      {
        name: "Failed",
        type: "integer",
        jsonPath: ".status.nodes.failed",
        description: "Nodes where the handler does not work",
      },
      { name: "Pods", type: "integer", jsonPath: ".status.pods", description: "Pods of the RuntimeClass" },
      {
        name: "Available",
        type: "string",
        jsonPath: condition("Ready"),
        description: "True when every selected node is ready",
      },
      {
        name: "Degraded",
        type: "string",
        jsonPath: condition("Degraded"),
        description: "True when something needs a person",
      },
      { name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp", description: "" },
      {
        name: "Revision",
        type: "string",
        jsonPath: ".status.updateRevision",
        description: "Hash of what reaches the nodes",
        priority: 1,
      },
      {
        name: "Start p50",
        type: "number",
        jsonPath: ".status.startSeconds.p50",
        description: "Median seconds from RunPodSandbox to a canary running",
        priority: 1,
      },
      {
        name: "Message",
        type: "string",
        jsonPath: `.status.conditions[?(@.type=="Ready")].message`,
        description: "What is being waited for",
        priority: 1,
      },
    ],
  },
  {
    kind: "NodeRuntime",
    plural: "noderuntimes",
    singular: "noderuntime",
    shortNames: ["nrt"],
    description:
      "NodeRuntime is what one node shall have of each profile (spec, written by the operator) and has (status, written by that node's agent).",
    spec: NodeRuntimeSpec,
    status: NodeRuntimeStatus,
    columns: [
      {
        name: "Engine",
        type: "string",
        jsonPath: ".status.engine.name",
        description: "What serves the node's kubelet",
      },
      {
        name: "Version",
        type: "string",
        jsonPath: ".status.engine.version",
        description: "Version of the engine",
      },
      {
        name: "Fronted",
        type: "boolean",
        jsonPath: ".status.engine.fronted",
        description: "True when Bulkhead stands in front of the engine",
      },
      {
        // Not the phases: of a list kubectl prints the first match only.
        name: "Ready",
        type: "string",
        jsonPath: ".status.ready",
        description: "Profiles that are Ready of those on the node",
      },
      {
        name: "Reported",
        type: "date",
        jsonPath: ".status.heartbeat",
        description: "When the agent last had news; that it lives is said by its node's Lease",
      },
      { name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp", description: "" },
      {
        name: "Kernel",
        type: "string",
        jsonPath: ".status.kernel",
        description: "The node's kernel",
        priority: 1,
      },
      {
        name: "KVM",
        type: "boolean",
        jsonPath: ".status.kvm",
        description: "True when a virtual machine boots here",
        priority: 1,
      },
    ],
  },
];

const crd = (definition: Definition) => ({
  apiVersion: "apiextensions.k8s.io/v1",
  kind: "CustomResourceDefinition",
  metadata: {
    name: `${definition.plural}.${group}`,
    labels: { "app.kubernetes.io/part-of": "bulkhead" },
  },
  spec: {
    group,
    scope: "Cluster",
    names: {
      kind: definition.kind,
      listKind: `${definition.kind}List`,
      plural: definition.plural,
      singular: definition.singular,
      shortNames: definition.shortNames,
      categories: ["bulkhead"],
    },
    versions: [
      {
        name: version,
        served: true,
        storage: true,
        subresources: { status: {} },
        additionalPrinterColumns: definition.columns.map(({ description, ...column }) =>
          description ? { ...column, description } : column,
        ),
        schema: {
          openAPIV3Schema: {
            type: "object",
            description: definition.description,
            required: ["spec"],
            properties: {
              apiVersion: { type: "string" },
              kind: { type: "string" },
              metadata: {
                type: "object",
                ...(definition.name ? { properties: { name: definition.name } } : {}),
              },
              spec: structuralSchema(definition.spec),
              status: structuralSchema(definition.status),
            },
          },
        },
      },
    ],
  },
});

export type CustomResourceDefinition = ReturnType<typeof crd>;

/** The CustomResourceDefinitions of Bulkhead, by the name of their file. */
export const customResourceDefinitions: Record<string, CustomResourceDefinition> = Object.fromEntries(
  definitions.map((definition) => [`${definition.plural}.yaml`, crd(definition)]),
);
