import { setTimeout as sleep } from "node:timers/promises";
import { labels } from "@bulkhead/lib/api/group.ts";
import type { Condition, RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { type KubeConfig, kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import { events } from "@bulkhead/lib/kube/events.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import {
  type AdmissionObject,
  mutatingBindings,
  mutatingPolicies,
  namespaces,
  pods,
  runtimeClasses,
  runtimeProfiles,
  validatingBindings,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import { ask } from "@bulkhead/test/apiserver/ask.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { startProxy } from "@bulkhead/test/apiserver/proxy.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { eventually, type Operator, startOperator } from "@bulkhead/test/operator/start.ts";
import { chosenVersions } from "@bulkhead/test/tools/kubernetes.ts";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createController } from "../controller.ts";

/** How the operator keeps tenancy: what it makes, mends, leaves, counts and takes away. A real API server. */

const allNamespaces: Resource<KubeObject> = { ...namespaces, metadataOnly: false };
const policyResources: Resource<AdmissionObject>[] = [
  validatingPolicies,
  validatingBindings,
  mutatingPolicies,
  mutatingBindings,
];

let server: ApiServer;
let config: KubeConfig;
let client: Client;
beforeAll(async () => {
  server = await startApiServer();
  config = await kubeconfigFile(server.kubeconfig);
  client = createClient({ config });
  await installCrds(client);
  await client.create(allNamespaces, { metadata: { name: "bulkhead-system" } });
});
afterAll(async () => {
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});

const profile = (name: string) => client.get(runtimeProfiles, name);
const createProfile = (name: string, tier: string, more: object = {}, spec: object = {}) =>
  client.create(runtimeProfiles, {
    metadata: { name },
    spec: {
      handler: { gvisor: {} },
      tenancy: { namespaceSelector: { matchLabels: { tier } }, mode: "Enforce", ...more },
      ...spec,
    },
  } as never);
const createNamespace = (name: string, tier: string, more: Record<string, string> = {}) =>
  client.create(allNamespaces, { metadata: { name, labels: { tier, ...more } } });
const createPod = (namespace: string, name: string, spec: object = {}) =>
  client.create(pods, {
    metadata: { name, namespace },
    spec: { containers: [{ name: "c", image: "none" }], ...spec },
  } as never);
const end = (namespace: string, name: string) =>
  client.patch(pods, name, { status: { phase: "Succeeded" } }, { namespace, subresource: "status" });
const tryPod = (namespace: string, spec: object) =>
  ask(config, {
    method: "POST",
    path: `/api/v1/namespaces/${namespace}/pods?dryRun=All`,
    body: { metadata: { name: "tried" }, spec: { containers: [{ name: "c", image: "none" }], ...spec } },
  });

const enforced = (is: RuntimeProfile | undefined): Condition | undefined =>
  is?.status?.conditions?.find((condition) => condition.type === "TenancyEnforced");
/** Whether this API server (./dev --kubernetes) has MutatingAdmissionPolicies. */
const mutates = chosenVersions().controlPlane >= "1.36";
const until = (name: string, reason: string) => {
  const wanted = reason === "Enforced" && !mutates ? "EnforcedWithoutDefault" : reason;
  return eventually(
    `${name}: ${wanted}`,
    () => profile(name),
    (is) => enforced(is)?.reason === wanted,
  );
};
/** What a message ends with where pods are given no class. */
const undone = (what: string) =>
  mutates
    ? ""
    : `; a pod that names no class is ${what}, not given it: this API server has no MutatingAdmissionPolicies of admissionregistration.k8s.io/v1 (Kubernetes 1.36)`;
const isServed = ({ kind }: Resource<AdmissionObject>): boolean => mutates || !kind.startsWith("Mutating");
/** How many policies and bindings a profile has. */
const all = mutates ? 7 : 5;
/** Every policy and binding of Bulkhead's as KIND NAME. */
const policies = async (): Promise<string[]> => {
  const lists = await Promise.all(
    policyResources
      .filter(isServed)
      .map(async (resource) =>
        (await client.list(resource)).items
          .filter(({ metadata }) => metadata.name.endsWith(".tenancy.bulkhead.dev"))
          .map(({ metadata }) => `${resource.kind} ${metadata.name}`),
      ),
  );
  return lists.flat().sort();
};
/** Ends all pods of tenants, and takes their profiles away, with the operator's help where one runs. */
const clean = async () => {
  for (const { metadata } of (await client.list(namespaces)).items) {
    if (metadata.labels?.tier === undefined) continue;
    // Nothing takes namespaces away here: without labels nobody claims them.
    await client.patch(namespaces, metadata.name, { metadata: { labels: { tier: null, old: null } } });
    for (const pod of (await client.list(pods, { namespace: metadata.name })).items) {
      await client.delete(pods, pod.metadata.name, { namespace: metadata.name });
    }
  }
  const profiles = async () => (await client.list(runtimeProfiles)).items;
  for (const { metadata } of await profiles()) await client.delete(runtimeProfiles, metadata.name);
  await eventually("no profiles", profiles, (list) => list?.length === 0);
  await eventually("no policies", policies, (list) => list?.length === 0);
  for (const { metadata } of (await client.list(runtimeClasses)).items) {
    await client.delete(runtimeClasses, metadata.name);
  }
};

describe("The operator", () => {
  let operator: Operator;
  const start = async () => {
    operator = await startOperator(server.kubeconfig, "bulkhead-system", "--no-leader-elect");
  };
  beforeAll(start);
  afterEach(clean);
  afterAll(() => operator.kill("SIGKILL"));
  const metrics = async () => (await fetch(`http://${operator.address}/metrics`)).text();

  test("puts tenancy in force, and takes it away with spec.tenancy and with the profile", async () => {
    await createNamespace("t1", "one");
    await createProfile("p1", "one");
    const is = await until("p1", "Enforced");
    expect(enforced(is)).toMatchObject({
      status: "True",
      message: `1 namespaces stand behind RuntimeClass "p1"${undone("refused")}`,
    });
    expect(is.status?.tenancy).toEqual({ namespaces: 1, podsOutside: 0 });
    expect(await policies()).toEqual([
      ...(mutates
        ? [
            "MutatingAdmissionPolicy p1.tenancy.bulkhead.dev",
            "MutatingAdmissionPolicyBinding p1.tenancy.bulkhead.dev",
          ]
        : []),
      "ValidatingAdmissionPolicy p1.namespaces.tenancy.bulkhead.dev",
      "ValidatingAdmissionPolicy p1.tenancy.bulkhead.dev",
      "ValidatingAdmissionPolicyBinding p1.namespaces.tenancy.bulkhead.dev",
      "ValidatingAdmissionPolicyBinding p1.pods.tenancy.bulkhead.dev",
      "ValidatingAdmissionPolicyBinding p1.workloads.tenancy.bulkhead.dev",
    ]);
    expect(await metrics()).toContain('bulkhead_tenancy_enforced{profile="p1"} 1');
    expect(await metrics()).toContain('bulkhead_tenancy_namespaces{profile="p1"} 1');

    // Nothing changes: nothing is written, by this operator or the next.
    const versions = async () =>
      (await client.list(validatingPolicies)).items.map(({ metadata }) => metadata.resourceVersion);
    const before = await versions();
    await operator.kill("SIGKILL");
    await start();
    await eventually("the metrics", metrics, (text) => text?.includes('enforced{profile="p1"} 1') ?? false);
    expect(await versions()).toEqual(before);
    expect(await metrics()).not.toMatch(/rest_client_requests_total\{method="(POST|PUT|DELETE)"/);

    await client.patch(runtimeProfiles, "p1", { spec: { tenancy: { default: false } } });
    await eventually("no mutation", policies, (list) => !list?.some((name) => name.startsWith("Mutating")));

    await client.patch(runtimeProfiles, "p1", { spec: { tenancy: null } });
    await eventually("no policies", policies, (list) => list?.length === 0);
    const without = await eventually(
      "no condition",
      () => profile("p1"),
      (p) => !enforced(p),
    );
    expect(without.status).not.toHaveProperty("tenancy");
    expect(await metrics()).not.toContain('bulkhead_tenancy_enforced{profile="p1"}');

    await client.patch(runtimeProfiles, "p1", {
      spec: { tenancy: { namespaceSelector: { matchLabels: { tier: "one" } }, mode: "Enforce" } },
    });
    await until("p1", "Enforced");
    await client.delete(runtimeProfiles, "p1");
    await eventually(
      "no profile",
      () => profile("p1"),
      (p) => p === undefined,
    );
    expect(await policies()).toEqual([]);
  });

  test("keeps the wall up while pods hold the deletion of the profile back", async () => {
    await createNamespace("t1b", "one");
    await createProfile("p1", "one");
    await until("p1", "Enforced");
    await createPod("t1b", "user", { runtimeClassName: "p1" });
    await eventually(
      "the pod counted",
      () => profile("p1"),
      (is) => is?.status?.pods === 1,
    );
    await client.delete(runtimeProfiles, "p1");
    await eventually(
      "in use",
      () => profile("p1"),
      (is) => Boolean(is?.status?.conditions?.some((c) => c.reason === "InUse")),
    );
    expect(await policies()).toHaveLength(all);
    await end("t1b", "user");
    await eventually(
      "no profile",
      () => profile("p1"),
      (is) => is === undefined,
    );
    expect(await policies()).toEqual([]);
  });

  test("takes away what a profile left whose finalizer was cut", async () => {
    await createProfile("p1", "one");
    await until("p1", "Enforced");
    await operator.kill("SIGKILL");
    await client.patch(runtimeProfiles, "p1", { metadata: { finalizers: null } });
    await client.delete(runtimeProfiles, "p1");
    expect(await policies()).toHaveLength(all);
    await start();
    await eventually("no policies", policies, (list) => list?.length === 0);
  });

  test("mends what others change of the policies, also what they add", async () => {
    await createProfile("p1", "one");
    await until("p1", "Enforced");
    const name = "p1.tenancy.bulkhead.dev";
    const good = await client.get(validatingPolicies, name);
    await client.patch(validatingPolicies, name, {
      metadata: { labels: { team: "a" } },
      spec: {
        failurePolicy: "Ignore",
        matchConditions: [...(good.spec.matchConditions as object[]), { name: "never", expression: "false" }],
      },
    });
    const mended = await eventually(
      "the policy mended",
      () => client.get(validatingPolicies, name),
      (is) => is?.spec.failurePolicy === "Fail",
    );
    expect(mended.spec).toEqual(good.spec);
    expect(mended.metadata.labels).toEqual({ ...good.metadata.labels, team: "a" });

    await client.patch(validatingBindings, "p1.pods.tenancy.bulkhead.dev", {
      spec: { validationActions: ["Audit"] },
    });
    await eventually(
      "the binding mended",
      () => client.get(validatingBindings, "p1.pods.tenancy.bulkhead.dev"),
      (is) => JSON.stringify(is?.spec.validationActions) === '["Deny","Audit"]',
    );
    for (const resource of policyResources.filter(isServed)) {
      for (const { metadata } of (await client.list(resource)).items) {
        if (metadata.labels?.[labels.profile] === "p1") await client.delete(resource, metadata.name);
      }
    }
    await eventually("all made anew", policies, (list) => list?.length === all);
  });

  test("leaves another's policy of the name as it is, and says so", async () => {
    await createProfile("p0", "zero");
    await until("p0", "Enforced");
    const { spec } = await client.get(validatingPolicies, "p0.tenancy.bulkhead.dev");
    const foreign = await client.create(validatingPolicies, {
      metadata: { name: "p1.tenancy.bulkhead.dev" },
      spec,
    });
    await createProfile("p1", "one");
    const is = await until("p1", "ForeignPolicy");
    expect(enforced(is)?.message).toBe(
      'ValidatingAdmissionPolicy "p1.tenancy.bulkhead.dev" exists and was not made by Bulkhead: it is left as it is; delete it',
    );
    expect(is.status?.conditions).toContainEqual(
      expect.objectContaining({ type: "Degraded", status: "True", reason: "ForeignPolicy" }),
    );
    await sleep(500);
    expect((await policies()).filter((name) => name.includes(" p1."))).toEqual([
      "ValidatingAdmissionPolicy p1.tenancy.bulkhead.dev",
    ]);
    expect((await client.get(validatingPolicies, "p1.tenancy.bulkhead.dev")).metadata.resourceVersion).toBe(
      foreign.metadata.resourceVersion,
    );
    await client.delete(validatingPolicies, "p1.tenancy.bulkhead.dev");
    await until("p1", "Enforced");
  });

  test("says what the API server has against a policy", async () => {
    await createProfile("p1", "one", { namespaceSelector: { matchLabels: { "_bad_/x": "y" } } });
    const is = await eventually(
      "the reason",
      () => profile("p1"),
      (p) => Boolean(enforced(p)),
    );
    expect(enforced(is)).toMatchObject({ status: "False", reason: "InvalidSpec" });
    expect(await policies()).toEqual([]);
  });

  test("counts the pods that run outside, by namespace, in status, metrics and Events", async () => {
    for (const [name, of] of [
      ["t2", "two"],
      ["t3", "two"],
      ["t4", "free"],
    ] as const) {
      await createNamespace(name, of);
      // Older than the policy.
      await createPod(name, "no-class");
      await createPod(name, "sharing", { hostPID: true });
    }
    await createPod("t2", "ended");
    await end("t2", "ended");
    await createProfile("p2", "two");
    // The watches of pods and profiles have no order between them: the first counts may be of some of the pods.
    const is = await eventually(
      "all pods counted",
      () => profile("p2"),
      (p) => p?.status?.tenancy?.podsOutside === 4,
    );
    expect(enforced(is)).toMatchObject({
      status: "False",
      reason: "PodsOutside",
      message: `4 pods in 2 namespaces run outside the wall: t2 (2, such as no-class: RuntimeClass), t3 (2, such as no-class: RuntimeClass)${undone("refused")}`,
    });
    expect(is.status?.tenancy).toEqual({
      namespaces: 2,
      podsOutside: 4,
      outside: [
        { namespace: "t2", pods: 2, example: "no-class", reason: "RuntimeClass" },
        { namespace: "t3", pods: 2, example: "no-class", reason: "RuntimeClass" },
      ],
    });
    const text = await metrics();
    expect(text).toContain('bulkhead_tenancy_pods_outside{profile="p2",namespace="t2"} 2');
    expect(text).toContain('bulkhead_tenancy_enforced{profile="p2"} 0');
    const told = await eventually(
      "the Event in the tenant's namespace",
      async () =>
        (await client.list(events, { namespace: "t3" })).items.find(({ note }) => note.startsWith("2 pods")),
      (event) => event !== undefined,
    );
    expect(told).toMatchObject({
      type: "Warning",
      reason: "PodsOutside",
      note: '2 pods run outside the wall of RuntimeProfile "p2", such as no-class: RuntimeClass',
      regarding: { kind: "Namespace", name: "t3" },
    });

    for (const name of ["t2", "t3"]) {
      await end(name, "no-class");
      await client.delete(pods, "sharing", { namespace: name });
    }
    const clear = await until("p2", "Enforced");
    expect(clear.status?.tenancy).toEqual({ namespaces: 2, podsOutside: 0 });
    await eventually("no such metric", metrics, (text) => !text?.includes("bulkhead_tenancy_pods_outside{"));

    // In Audit they come in, and are counted, too.
    await client.patch(runtimeProfiles, "p2", { spec: { tenancy: { mode: "Audit" } } });
    const audit = await until("p2", "Audit");
    expect(enforced(audit)?.message).toBe(
      `spec.tenancy.mode is Audit: nothing is refused${undone("recorded")}`,
    );
    await eventually(
      "a pod that is let in",
      () => createPod("t2", "late", { runtimeClassName: "p2", hostNetwork: true }).catch(() => undefined),
      Boolean,
    );
    const late = await eventually(
      "the count",
      () => profile("p2"),
      (p) => p?.status?.tenancy?.podsOutside === 1,
    );
    expect(late.status?.tenancy?.outside).toEqual([
      { namespace: "t2", pods: 1, example: "late", reason: "HostNetwork" },
    ]);
  });

  test("gives a namespace that two profiles claim to the older one, and says so of the younger", async () => {
    await createNamespace("t5", "five", { old: "yes" });
    await createNamespace("t6", "five");
    await createProfile("zz-elder", "", { namespaceSelector: { matchLabels: { old: "yes" } } });
    await until("zz-elder", "Enforced");
    await sleep(1_100); // creation times are in seconds
    await createProfile("younger", "five", {}, { handler: { kata: {} } });
    const is = await until("younger", "NamespaceConflict");
    expect(enforced(is)?.message).toContain("t5 (zz-elder)");
    expect(is.status?.tenancy).toMatchObject({
      namespaces: 1,
      conflicts: [{ namespace: "t5", profile: "zz-elder" }],
    });
    expect(enforced(await profile("zz-elder"))).toMatchObject({ status: "True" });

    // By the class that a pod is given; where none is, by whose policy refuses it.
    const wallOf = (namespace: string) => async () => {
      const { spec, message } = (await tryPod(namespace, {})).body;
      return (
        (spec as { runtimeClassName?: string } | undefined)?.runtimeClassName ??
        /behind the wall of RuntimeProfile "([^"]+)"/.exec(message ?? "")?.[1]
      );
    };
    await eventually("the elder's wall", wallOf("t5"), (name) => name === "zz-elder");
    await eventually("the younger's wall", wallOf("t6"), (name) => name === "younger");

    await client.delete(runtimeProfiles, "zz-elder");
    await until("younger", "Enforced");
    await eventually("the heir's wall", wallOf("t5"), (name) => name === "younger");
  });

  test("lets an older profile whose policies are not in force take no namespace, and opens none", async () => {
    await createNamespace("t30", "thirty", { old: "yes" });
    await client.create(runtimeClasses, { metadata: { name: "broken-elder" }, handler: "runc" });
    await createProfile("broken-elder", "", { namespaceSelector: { matchLabels: { old: "yes" } } });
    await until("broken-elder", "RuntimeClassNotReady");
    await sleep(1_100); // creation times are in seconds
    await createProfile("standing", "thirty", {}, { handler: { kata: {} } });
    await until("standing", "Enforced");
    const refused = async () => (await tryPod("t30", { hostPID: true })).status === 403;
    await eventually("the wall", refused, Boolean);

    // As soon as the elder's word is law, it is the elder's.
    await client.delete(runtimeClasses, "broken-elder");
    await until("standing", "NamespaceConflict");
    await until("broken-elder", "Enforced");
    expect(await refused()).toBe(true);

    // One that is on its way out holds nothing.
    await client.patch(runtimeProfiles, "broken-elder", {
      metadata: { finalizers: ["bulkhead.dev/in-use", "tests.bulkhead.dev/hold"] },
    });
    await client.delete(runtimeProfiles, "broken-elder");
    await until("standing", "Enforced");
    await eventually("the wall", refused, Boolean);
    const left = async () => (await policies()).filter((each) => each.includes("broken-elder"));
    await eventually("no policies", left, (list) => list?.length === 0);
    expect(await refused()).toBe(true);
    await client.patch(runtimeProfiles, "broken-elder", { metadata: { finalizers: [] } });
  });

  test("closes the wall when the profile's class is another's, and opens nothing", async () => {
    await createNamespace("t7", "seven");
    await createProfile("p7", "seven");
    await until("p7", "Enforced");
    await operator.kill("SIGKILL");
    await client.delete(runtimeClasses, "p7");
    await client.create(runtimeClasses, { metadata: { name: "p7" }, handler: "runc" });
    await start();
    const is = await until("p7", "RuntimeClassNotReady");
    expect(enforced(is)?.message).toContain("pods are refused that ask for it");
    await eventually(
      "a pod refused",
      () => tryPod("t7", { runtimeClassName: "p7" }),
      (a) => a?.status === 403,
    );
  });

  test("takes no namespace of the system or its own behind a wall", async () => {
    for (const name of ["bulkhead-system", "kube-system"]) {
      await client.patch(namespaces, name, { metadata: { labels: { tier: "eight" } } });
    }
    await createNamespace("t8", "eight");
    await createProfile("p8", "eight");
    const is = await until("p8", "Enforced");
    expect(is.status?.tenancy?.namespaces).toBe(1);
    await eventually(
      "the wall",
      () => tryPod("t8", { hostPID: true }),
      (a) => a?.status === 403,
    );
    for (const name of ["bulkhead-system", "kube-system"]) {
      expect((await tryPod(name, { hostPID: true })).status).toBe(201);
    }
  });
});

test("Where the API server has no MutatingAdmissionPolicies, a pod without a class is refused", async () => {
  await using proxy = await startProxy(config);
  proxy.fault = (_method, path) =>
    path.includes("/mutatingadmission") ? { do: "answer", status: 404 } : undefined;
  const behind = createClient({ config: proxy.config });
  const stop = new AbortController();
  const controller = createController({
    client: behind,
    recorder: { emit: () => {}, flush: async () => {} },
    registry: new Registry(),
    log: pino({ level: "silent" }),
    namespace: "bulkhead-system",
  });
  const running = [controller.watch(stop.signal), controller.work(stop.signal)];
  try {
    await createNamespace("t9", "nine");
    await createProfile("p9", "nine");
    const is = await until("p9", "EnforcedWithoutDefault");
    expect(controller.missing()).toEqual([]);
    expect(enforced(is)).toMatchObject({
      status: "True",
      message:
        '1 namespaces stand behind RuntimeClass "p9"; a pod that names no class is refused, not given it: this API server has no MutatingAdmissionPolicies of admissionregistration.k8s.io/v1 (Kubernetes 1.36)',
    });
    await eventually(
      "a pod refused",
      () => tryPod("t9", {}),
      (answer) => answer?.status === 403,
    );
    expect((await tryPod("t9", { runtimeClassName: "p9" })).status).toBe(201);
  } finally {
    stop.abort();
    await Promise.all(running);
    await behind.close();
  }
});
