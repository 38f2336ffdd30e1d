import { apiVersion, group, labels } from "@bulkhead/lib/api/group.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import type { Tenancy } from "@bulkhead/lib/api/tenancy.ts";
import type { Resource } from "@bulkhead/lib/kube/object.ts";
import {
  type AdmissionObject,
  mutatingBindings,
  mutatingPolicies,
  validatingBindings,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import { sameJson } from "@bulkhead/lib/std/canonical-json.ts";
import { managedBy } from "../runtime-class.ts";
import { rulesBehind } from "./rules.ts";
import { celLiteral, celSelects } from "./selector.ts";
import { wallOf } from "./wall.ts";

/** Another profile with tenancy that is older than this one: its namespaces are not this one's. */
export type Elder = { name: string; tenancy: Tenancy };

export type PolicyInput = {
  profile: RuntimeProfile;
  tenancy: Tenancy;
  /** RuntimeClasses that a pod may name: the profile's own first, unless it is not to be trusted. */
  classes: string[];
  elders: Elder[];
  /** Namespaces that are nobody's: the system's and Bulkhead's own. */
  reserved: string[];
  /** The RuntimeClass that a pod without one gets; undefined where none is to be set, or nothing can set it. */
  defaultClass?: string;
};

/** An object of the API with where it is served. */
export type Policy = { resource: Resource<AdmissionObject>; object: AdmissionObject };

/** The HTTP answer's reason where a request is refused (meta/v1 StatusReason). */
const forbidden = "Forbidden";

const suffix = `tenancy.${group}`;

/** The name of a policy or binding of a profile: PROFILE.tenancy.bulkhead.dev, PROFILE.PART.tenancy.bulkhead.dev. */
const nameOf = (profile: string, part?: string): string =>
  [profile, ...(part ? [part] : []), suffix].join(".");

/** Names of the policy that judges a profile's pods, and of what puts it in force. */
export const podPolicyNames = (profile: string): { policy: string; binding: string } => ({
  policy: nameOf(profile),
  binding: nameOf(profile, "pods"),
});

/** Whose policy an object of this name is, or would be: a profile's name has no dot. */
export const profileOf = (name: string): string | undefined =>
  name.endsWith(`.${suffix}`) ? name.split(".", 1)[0] : undefined;

const rule = (apiGroup: string, resources: string[], operations: string[]) => ({
  apiGroups: [apiGroup],
  apiVersions: ["*"],
  operations,
  resources,
  scope: "*",
});
const podRules = [
  // Annotations can change on a pod that lives; the rest of what is judged cannot.
  rule("", ["pods"], ["CREATE", "UPDATE"]),
  rule("", ["pods/ephemeralcontainers"], ["UPDATE"]),
];
const workloadRules = [
  rule("", ["replicationcontrollers"], ["CREATE", "UPDATE"]),
  rule("apps", ["deployments", "statefulsets", "daemonsets", "replicasets"], ["CREATE", "UPDATE"]),
  rule("batch", ["jobs", "cronjobs"], ["CREATE", "UPDATE"]),
];

/** What the API server would add, written out: an object as it comes back is then equal to what was sent. */
const match = (resourceRules: object[], namespaceSelector: object = {}) => ({
  matchPolicy: "Equivalent",
  namespaceSelector,
  objectSelector: {},
  resourceRules,
});

/** In this namespace this profile's word holds: it is not exempt, not the system's, and no older profile's. */
const claimedBy = (tenancy: Tenancy, reserved: string[], labelsCel: string): string =>
  `(${celSelects(tenancy.namespaceSelector, labelsCel)} && !(request.namespace in ${celLiteral([...reserved, ...(tenancy.exempt?.namespaces ?? [])])}))`;

const notExempt = (tenancy: Tenancy, reserved: string[]) => ({
  name: "namespace-not-exempt",
  expression: `!(request.namespace in ${celLiteral([...reserved, ...(tenancy.exempt?.namespaces ?? [])])})`,
});

/** Requests that are not judged at all. Match conditions cannot see the namespace's labels. */
const conditions = ({ tenancy, reserved }: PolicyInput) => {
  const accounts = (tenancy.exempt?.serviceAccounts ?? []).map(
    (name) => `system:serviceaccount:${name.replace("/", ":")}`,
  );
  return [
    notExempt(tenancy, reserved),
    ...(accounts.length > 0
      ? [
          {
            name: "account-not-exempt",
            expression: `!(request.userInfo.username in ${celLiteral(accounts)})`,
          },
        ]
      : []),
    {
      // A static pod runs whether the API server likes it or not: refusing its mirror would only hide it.
      name: "no-mirror-of-a-static-pod",
      expression:
        '!(request.resource.resource == "pods" && "system:nodes" in request.userInfo.?groups.orValue([]) && "kubernetes.io/config.mirror" in dyn(object).metadata.?annotations.orValue({}))',
    },
  ];
};

/**
 * True when an elder's word is law: its policy for pods is there, of this very tenancy, and bound. One that never came
 * to that (its class is another's, the API server refused it) must not open a namespace that a younger one keeps.
 */
export const isInForce = (
  { name, tenancy }: Elder,
  reserved: string[],
  { policy, binding }: { policy: AdmissionObject | undefined; binding: AdmissionObject | undefined },
): boolean => {
  const ours = [policy, binding].every((object) => object?.metadata.labels?.[labels.profile] === name);
  const { matchConstraints, matchConditions } = (policy?.spec ?? {}) as {
    matchConstraints?: { namespaceSelector?: object };
    matchConditions?: object[];
  };
  return (
    ours &&
    sameJson(matchConstraints?.namespaceSelector, tenancy.namespaceSelector) &&
    sameJson(matchConditions?.[0], notExempt(tenancy, reserved)) &&
    binding?.spec.policyName === podPolicyNames(name).policy
  );
};

const elderVariable = ({ elders, reserved }: PolicyInput) => [
  { name: "labels", expression: "namespaceObject.metadata.?labels.orValue({})" },
  {
    name: "elders",
    expression:
      elders.map((elder) => claimedBy(elder.tenancy, reserved, "variables.labels")).join(" || ") || "false",
  },
];

const podPolicy = (input: PolicyInput): AdmissionObject["spec"] => {
  const { profile, tenancy, classes, defaultClass } = input;
  const whose = `behind the wall of RuntimeProfile "${profile.metadata.name}"`;
  const unless = (holds: string) => `variables.elders || (${holds})`;
  const named = `variables.runtimeClass in ${celLiteral(classes)}`;
  // What a template leaves out, its pods will get.
  const classKept =
    defaultClass === undefined
      ? `!variables.isNew || ${named}`
      : `!variables.isNew || ${named} || (variables.runtimeClass == "" && request.resource.resource != "pods")`;
  const judged = rulesBehind(wallOf(profile.spec));
  return {
    failurePolicy: tenancy.mode === "Enforce" ? "Fail" : "Ignore",
    matchConstraints: match([...podRules, ...workloadRules], tenancy.namespaceSelector),
    matchConditions: [
      ...conditions(input),
      {
        name: "not-made-by-a-controller",
        // A Deployment's own ReplicaSets say nothing that the Deployment did not say.
        expression:
          'request.resource.resource == "pods" || !dyn(object).metadata.?ownerReferences.orValue([]).exists(o, o.?controller.orValue(false))',
      },
    ],
    variables: [
      ...elderVariable(input),
      {
        name: "template",
        expression:
          'request.resource.resource == "pods" ? dyn(object) : request.resource.resource == "cronjobs" ? dyn(object).spec.jobTemplate.spec.template : dyn(object).spec.?template.orValue({})',
      },
      {
        name: "isNew",
        expression: 'request.resource.resource != "pods" || request.operation == "CREATE"',
      },
      // Of a pod that lives only what can change: what it was let in with is not judged again.
      { name: "spec", expression: "variables.isNew ? variables.template.?spec.orValue({}) : dyn({})" },
      {
        name: "containers",
        expression:
          'variables.isNew ? variables.spec.?containers.orValue([]) + variables.spec.?initContainers.orValue([]) : request.?subResource.orValue("") == "ephemeralcontainers" ? variables.template.spec.?ephemeralContainers.orValue([]) : []',
      },
      {
        name: "oldAnnotations",
        expression: "variables.isNew ? dyn({}) : dyn(oldObject).metadata.?annotations.orValue({})",
      },
      {
        name: "annotations",
        expression:
          "variables.template.?metadata.?annotations.orValue({}).filter(a, !(a in variables.oldAnnotations) || variables.oldAnnotations[a] != variables.template.metadata.annotations[a])",
      },
      { name: "runtimeClass", expression: 'variables.spec.?runtimeClassName.orValue("")' },
      {
        name: "broken",
        expression: `(${classKept} ? [] : ["RuntimeClass"])${judged.map(({ name, cel }) => ` + (${cel} ? [] : ["${name}"])`).join("")}`,
      },
    ],
    validations: [
      {
        expression: unless('!("RuntimeClass" in variables.broken)'),
        messageExpression: `${celLiteral(`${whose} spec.runtimeClassName must be one of ${classes.join(", ") || "(none is there)"}; it is `)} + (variables.runtimeClass == "" ? "not set" : variables.runtimeClass)`,
        reason: forbidden,
      },
      ...judged.map(({ name, message }) => ({
        expression: unless(`!("${name}" in variables.broken)`),
        message: `${whose} ${message}`,
        reason: forbidden,
      })),
    ],
    auditAnnotations: [
      {
        key: "outside-the-wall",
        // Nothing is written when it is empty.
        valueExpression: 'variables.elders ? "" : variables.broken.join(",")',
      },
    ],
  };
};

const namespacePolicy = ({ profile, tenancy, reserved }: PolicyInput): AdmissionObject["spec"] => {
  const { name } = profile.metadata;
  const inside = (object: string) =>
    celSelects(tenancy.namespaceSelector, `${object}.metadata.?labels.orValue({})`);
  return {
    failurePolicy: tenancy.mode === "Enforce" ? "Fail" : "Ignore",
    // Labels can be written by way of the subresources, too.
    matchConstraints: match([
      rule("", ["namespaces", "namespaces/status", "namespaces/finalize"], ["UPDATE"]),
    ]),
    matchConditions: [
      {
        name: "namespace-not-exempt",
        expression: `!(request.name in ${celLiteral([...reserved, ...(tenancy.exempt?.namespaces ?? [])])})`,
      },
    ],
    variables: [
      { name: "was", expression: inside("oldObject") },
      { name: "is", expression: inside("object") },
    ],
    validations: [
      {
        expression: `variables.was == variables.is || authorizer.group(${celLiteral(group)}).resource("runtimeprofiles").name(${celLiteral(name)}).check("update").allowed()`,
        messageExpression: `(variables.was ? "taking namespace " + request.name + " out from" : "putting namespace " + request.name) + ${celLiteral(` behind the wall of RuntimeProfile "${name}" needs the right to update that profile`)}`,
        reason: forbidden,
      },
    ],
  };
};

const mutation = (input: PolicyInput, defaultClass: string): AdmissionObject["spec"] => ({
  failurePolicy: input.tenancy.mode === "Enforce" ? "Fail" : "Ignore",
  matchConstraints: match([rule("", ["pods"], ["CREATE"])], input.tenancy.namespaceSelector),
  matchConditions: [
    ...conditions(input),
    { name: "no-class", expression: 'object.spec.?runtimeClassName.orValue("") == ""' },
  ],
  variables: elderVariable(input),
  reinvocationPolicy: "IfNeeded",
  mutations: [
    {
      patchType: "ApplyConfiguration",
      applyConfiguration: {
        expression: `variables.elders ? Object{} : Object{spec: Object.spec{runtimeClassName: ${celLiteral(defaultClass)}}}`,
      },
    },
  ],
});

/**
 * All that puts a profile's tenancy in force, in the order in which it is to be made; taken away it is in the other.
 * A pod is first given its class, then judged.
 */
export const desiredPolicies = (input: PolicyInput): Policy[] => {
  const { profile, tenancy, defaultClass } = input;
  const { name, uid } = profile.metadata;
  const object = (part: string | undefined, spec: AdmissionObject["spec"]): AdmissionObject => ({
    metadata: {
      name: nameOf(name, part),
      labels: { [labels.managedBy]: managedBy, [labels.profile]: name },
      // Where somebody took the profile's finalizer away, its policies go all the same.
      ...(uid ? { ownerReferences: [{ apiVersion, kind: "RuntimeProfile", name, uid }] } : {}),
    },
    spec,
  });
  const policyName = nameOf(name);
  const namespacesName = nameOf(name, "namespaces");
  const actions = tenancy.mode === "Enforce" ? ["Deny", "Audit"] : ["Warn", "Audit"];
  return [
    ...(defaultClass === undefined
      ? []
      : [
          { resource: mutatingPolicies, object: object(undefined, mutation(input, defaultClass)) },
          { resource: mutatingBindings, object: object(undefined, { policyName }) },
        ]),
    { resource: validatingPolicies, object: object(undefined, podPolicy(input)) },
    {
      resource: validatingBindings,
      object: object("pods", { policyName, validationActions: actions, matchResources: match(podRules) }),
    },
    {
      // Never refused: what a workload says is refused at its pods. But who applies it learns of it at once.
      resource: validatingBindings,
      object: object("workloads", {
        policyName,
        validationActions: ["Warn", "Audit"],
        matchResources: match(workloadRules),
      }),
    },
    { resource: validatingPolicies, object: object("namespaces", namespacePolicy(input)) },
    {
      resource: validatingBindings,
      object: object("namespaces", { policyName: namespacesName, validationActions: actions }),
    },
  ];
};
