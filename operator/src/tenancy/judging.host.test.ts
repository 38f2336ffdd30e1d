import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LabelSelector } from "@bulkhead/lib/api/tenancy.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { type KubeConfig, kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import {
  type JudgedPod,
  namespaces,
  pods,
  runtimeClasses,
  runtimeProfiles,
} from "@bulkhead/lib/kube/resources.ts";
import { type Answer, type As, ask } from "@bulkhead/test/apiserver/ask.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { eventually, type Operator, startOperator } from "@bulkhead/test/operator/start.ts";
import { chosenVersions } from "@bulkhead/test/tools/kubernetes.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { brokenBy, rules } from "./rules.ts";
import { selects } from "./selector.ts";

/**
 * What a tenant may and may not do, asked of a real API server under the policies that the operator put there.
 * docs/tenancy.md names these tests one by one.
 */

const allNamespaces: Resource<KubeObject> = { ...namespaces, metadataOnly: false };
const admin: As = { user: "admin", groups: ["system:masters"] };
const tenant: As = { user: "tina", groups: ["tenants", "system:authenticated"] };

let server: ApiServer;
let config: KubeConfig;
let client: Client;
let operator: Operator;
let directory: string;
let auditLog: string;

const profile = (name: string, spec: object) =>
  client.create(runtimeProfiles, { metadata: { name }, spec } as never);
/** Every operator at once, none of the other profiles' namespaces. */
const namespaceSelector: LabelSelector = {
  matchLabels: { tier: "expressive" },
  matchExpressions: [
    { key: "in", operator: "In", values: ["1", "2"] },
    { key: "not", operator: "NotIn", values: ["1", "2"] },
    { key: "there", operator: "Exists" },
    { key: "gone", operator: "DoesNotExist" },
  ],
};
const tier = (name: string) => ({ namespaceSelector: { matchLabels: { tier: name } } });

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-audit-"));
  const auditPolicy = join(directory, "policy.yaml");
  await writeFile(auditPolicy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{ level: Metadata }]\n");
  auditLog = join(directory, "audit.log");
  server = await startApiServer({
    flags: [
      "--allow-privileged=true",
      `--audit-policy-file=${auditPolicy}`,
      `--audit-log-path=${auditLog}`,
      "--audit-log-mode=blocking",
    ],
  });
  config = await kubeconfigFile(server.kubeconfig);
  client = createClient({ config });
  await installCrds(client);
  // What a tenant has in its own namespaces, and more: it may even write Namespaces.
  const rbac = "rbac.authorization.k8s.io/v1";
  await client.create({ apiVersion: rbac, kind: "ClusterRole", plural: "clusterroles", namespaced: false }, {
    metadata: { name: "tenant" },
    rules: [
      {
        apiGroups: [""],
        resources: [
          ...["pods", "pods/ephemeralcontainers", "replicationcontrollers"],
          ...["namespaces", "namespaces/status", "namespaces/finalize"],
        ],
        verbs: ["*"],
      },
      { apiGroups: ["apps", "batch"], resources: ["*"], verbs: ["*"] },
    ],
  } as KubeObject);
  await client.create(
    { apiVersion: rbac, kind: "ClusterRoleBinding", plural: "clusterrolebindings", namespaced: false },
    {
      metadata: { name: "tenant" },
      roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "tenant" },
      subjects: [
        { kind: "Group", apiGroup: "rbac.authorization.k8s.io", name: "tenants" },
        { kind: "ServiceAccount", namespace: "ci", name: "runner" },
      ],
    } as KubeObject,
  );
  for (const [name, is] of [
    ["tenant", "tenant"],
    ["excepted", "tenant"],
    ["plain", "plain"],
    ["watched", "watched"],
    ["free", "free"],
    ["bulkhead-system", "none"],
  ] as const) {
    await client.create(allNamespaces, { metadata: { name, labels: { tier: is } } });
  }
  await client.create(allNamespaces, {
    metadata: { name: "expressive", labels: { tier: "expressive", in: "1", there: "" } },
  });
  operator = await startOperator(server.kubeconfig, "bulkhead-system", "--no-leader-elect");
  await profile("machine", { handler: { kata: {} } });
  await profile("sandboxed", {
    handler: { gvisor: {} },
    runtimeClass: { overhead: { memory: "20Mi" } },
    tenancy: {
      ...tier("tenant"),
      mode: "Enforce",
      exempt: { namespaces: ["excepted"], serviceAccounts: ["ci/runner"] },
    },
  });
  await profile("plain", { handler: { runc: {} }, tenancy: { ...tier("plain"), mode: "Enforce" } });
  await profile("watched", { handler: { gvisor: {} }, tenancy: { ...tier("watched"), default: false } });
  await profile("expressive", { handler: { runc: {} }, tenancy: { namespaceSelector, mode: "Enforce" } });
  await client.create(runtimeClasses, { metadata: { name: "foreign" }, handler: "anything" });
  for (const name of ["machine", "sandboxed", "plain", "watched"]) {
    await eventually(`the class of ${name}`, () => client.get(runtimeClasses, name), Boolean);
  }
  // The API server takes a moment until it acts by a policy, and until it knows what a tenant may do.
  const holey = { hostPID: true };
  for (const name of ["tenant", "plain", "expressive"]) {
    await eventually(
      `the wall of ${name}`,
      () => create(name, holey),
      (answer) => answer?.body.message?.includes("behind the wall") ?? false,
    );
    await eventually(
      `the guard of ${name}`,
      () => mergePatch(`/api/v1/namespaces/${name}?dryRun=All`, { metadata: { labels: { tier: null } } }),
      (answer) => answer?.body.message?.includes("needs the right to update") ?? false,
    );
  }
  await eventually(
    "the watch",
    () => create("watched", holey),
    (is) => (is?.warnings.length ?? 0) > 1,
  );
  await eventually(
    "the stronger class",
    () => create("tenant", { runtimeClassName: "machine" }),
    (answer) => answer?.status === 201,
  );
});
afterAll(async () => {
  await operator?.kill("SIGKILL");
  await client?.close();
  await server?.[Symbol.asyncDispose]();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

const podOf = (spec: object, metadata: object = {}, container: object = {}): JudgedPod =>
  ({
    metadata: { name: "p", ...metadata },
    spec: { containers: [{ name: "c", image: "none", ...container }], ...spec },
  }) as object as JudgedPod;
const send = (method: string, path: string, body: object, as: As = tenant, contentType?: string) =>
  ask(config, { method, path, body, as, ...(contentType ? { contentType } : {}) });
/** Whether this API server (./dev --kubernetes) has MutatingAdmissionPolicies. */
const mutates = chosenVersions().controlPlane >= "1.36";
/** Where no API server gives a pod of these namespaces its class, its owner names it. */
const classes: Record<string, string> = mutates
  ? {}
  : { tenant: "sandboxed", plain: "plain", expressive: "expressive" };
const classed = (namespace: string, pod: JudgedPod): JudgedPod => ({
  ...pod,
  spec: {
    ...(classes[namespace] === undefined ? {} : { runtimeClassName: classes[namespace] }),
    ...pod.spec,
  },
});
/** Asks whether a pod would be let in; none is made. */
const tryPod = (namespace: string, pod: JudgedPod, as?: As): Promise<Answer> =>
  send("POST", `/api/v1/namespaces/${namespace}/pods?dryRun=All`, classed(namespace, pod), as);
const create = (namespace: string, spec: object, as?: As) => tryPod(namespace, podOf(spec), as);
const mergePatch = (path: string, patch: object, as?: As) =>
  send("PATCH", path, patch, as, "application/merge-patch+json");

describe("A tenant's pod", () => {
  test("that names no class gets the profile's, with its overhead and the nodes that serve it; below Kubernetes 1.36 it is refused", async () => {
    const { status, body } = await create("tenant", { runtimeClassName: undefined });
    if (!mutates) {
      expect(status).toBe(403);
      expect(body.message).toContain("must be one of sandboxed, machine, watched; it is not set");
      return;
    }
    expect(status).toBe(201);
    expect(body.spec).toMatchObject({
      runtimeClassName: "sandboxed",
      overhead: { memory: "20Mi" },
      nodeSelector: { "handler.bulkhead.dev/sandboxed": "ready" },
    });
  });

  test("that names the profile's class, or one of a stronger wall, is let in as it is", async () => {
    for (const runtimeClassName of ["sandboxed", "machine"]) {
      const { status, body, warnings } = await create("tenant", { runtimeClassName });
      expect({ status, warnings }).toEqual({ status: 201, warnings: [] });
      expect(body.spec).toMatchObject({ runtimeClassName });
    }
  });

  test.each([
    ["of a weaker wall", "plain"],
    ["of another's making", "foreign"],
  ])("that names a class %s is refused", async (_title, runtimeClassName) => {
    const { status, body } = await create("tenant", { runtimeClassName });
    expect(status).toBe(403);
    expect(body.message).toContain(
      `behind the wall of RuntimeProfile "sandboxed" spec.runtimeClassName must be one of sandboxed, machine, watched; it is ${runtimeClassName}`,
    );
  });

  test("on a node of its own choice still has the class, which that node must serve", async () => {
    const { status, body } = await create("tenant", { nodeName: "node-a" });
    expect(status).toBe(201);
    expect(body.spec).toMatchObject({
      nodeName: "node-a",
      runtimeClassName: "sandboxed",
      nodeSelector: { "handler.bulkhead.dev/sandboxed": "ready" },
    });
  });

  test("keeps its class for life", async () => {
    await client.create(pods, {
      ...classed("tenant", podOf({})),
      metadata: { name: "lasting", namespace: "tenant" },
    } as never);
    const { status, body } = await mergePatch("/api/v1/namespaces/tenant/pods/lasting", {
      spec: { runtimeClassName: "foreign" },
    });
    expect(status).toBe(422);
    expect(body.message).toContain("pod updates may not change fields other than");
  });
});

/** Per rule: pods that break it alone. */
const holes: [rule: string, pod: JudgedPod][] = [
  ["HostPID", podOf({ hostPID: true })],
  ["HostIPC", podOf({ hostIPC: true })],
  ["HostNetwork", podOf({ hostNetwork: true })],
  ["HostPath", podOf({ volumes: [{ name: "v", hostPath: { path: "/" } }] })],
  ["Privileged", podOf({}, {}, { securityContext: { privileged: true } })],
  [
    "Privileged",
    podOf({ initContainers: [{ name: "i", image: "none", securityContext: { privileged: true } }] }),
  ],
  ["ProcMount", podOf({ hostUsers: false }, {}, { securityContext: { procMount: "Unmasked" } })],
  ["RuntimeAnnotation", podOf({}, { annotations: { "run.oci.handler": "krun" } })],
  ["RuntimeAnnotation", podOf({}, { annotations: { "cdi.k8s.io/all": "vendor.com/device=all" } })],
  ["Capabilities", podOf({}, {}, { securityContext: { capabilities: { add: ["SYS_ADMIN"] } } })],
  ["RuntimeAnnotation", podOf({}, { annotations: { "dev.gvisor.spec.rootfs.source": "/" } })],
  ["RuntimeAnnotation", podOf({}, { annotations: { "dev.gvisor.spec.cgroup-parent": "/" } })],
  ["RuntimeAnnotation", podOf({}, { annotations: { "dev.gvisor.flag.network": "host" } })],
  [
    "RuntimeAnnotation",
    podOf({}, { annotations: { "io.katacontainers.config.runtime.disable_new_netns": "true" } }),
  ],
  ["SELinux", podOf({ securityContext: { seLinuxOptions: { type: "spc_t" } } })],
  ["SELinux", podOf({}, {}, { securityContext: { seLinuxOptions: { user: "system_u" } } })],
  [
    "SELinux",
    podOf({}, {}, { securityContext: { seLinuxOptions: { type: "container_t", role: "sysadm_r" } } }),
  ],
  ["Seccomp", podOf({ securityContext: { seccompProfile: { type: "Unconfined" } } })],
  ["Seccomp", podOf({}, {}, { securityContext: { seccompProfile: { type: "Unconfined" } } })],
  ["AppArmor", podOf({}, {}, { securityContext: { appArmorProfile: { type: "Unconfined" } } })],
];
const harmless: [title: string, pod: JudgedPod][] = [
  ["nothing special", podOf({})],
  ["what no rule is about", podOf({ hostUsers: false, volumes: [{ name: "v", emptyDir: {} }] })],
  [
    "what a profile can let a pod say of gVisor and Kata",
    podOf(
      { securityContext: { seLinuxOptions: { level: "s0:c1,c2" } } },
      {
        annotations: {
          "dev.gvisor.flag.debug": "true",
          "dev.gvisor.spec.mount.v.share": "pod",
          "io.katacontainers.config.hypervisor.default_vcpus": "2",
        },
      },
    ),
  ],
  ["other annotations", podOf({}, { annotations: { "example.com/run.oci.handler": "x" } })],
  [
    "a profile and capabilities that any pod may have",
    podOf(
      { securityContext: { seccompProfile: { type: "RuntimeDefault" } } },
      {},
      { securityContext: { privileged: false, procMount: "Default", capabilities: { add: ["KILL"] } } },
    ),
  ],
];

describe("A hole in the wall of runc", () => {
  test.each(holes)("%s is refused and counted", async (name, pod) => {
    expect(brokenBy(pod)).toEqual([name]);
    const { status, body } = await tryPod("plain", pod);
    expect(status).toBe(403);
    expect(body.message).toContain(rules.find((rule) => rule.name === name)?.message);
    expect((await tryPod("free", pod)).status).toBe(201);
  });
  test.each(harmless)("is not %s", async (_title, pod) => {
    expect(brokenBy(pod)).toEqual([]);
    expect(await tryPod("plain", pod)).toMatchObject({ status: 201, warnings: [] });
  });
  test("AppArmor is one by the annotation of before its field, too: the API server makes the field of it", async () => {
    const annotations = { "container.apparmor.security.beta.kubernetes.io/c": "unconfined" };
    const { status, body } = await tryPod("plain", podOf({}, { annotations }));
    expect(status).toBe(403);
    expect(body.message).toContain("appArmorProfile.type must not be Unconfined");
  });
  test("has a test of each rule", () => {
    expect(new Set(holes.map(([name]) => name))).toEqual(new Set(rules.map((rule) => rule.name)));
  });
});

describe("Behind a kernel of its own", () => {
  test.each(holes)("%s is refused where it reaches the node", async (name, pod) => {
    const reaches = !rules.find((rule) => rule.name === name)?.sharedKernelOnly;
    expect((await tryPod("tenant", pod)).status).toBe(reaches ? 403 : 201);
  });
});

describe("A pod that lives", () => {
  const path = "/api/v1/namespaces/tenant/pods/living";
  beforeAll(async () => {
    await client.create(pods, {
      ...classed("tenant", podOf({})),
      metadata: { name: "living", namespace: "tenant" },
    } as never);
  });
  const debug = (securityContext: object) =>
    send(
      "PATCH",
      `${path}/ephemeralcontainers?dryRun=All`,
      { spec: { ephemeralContainers: [{ name: "debug", image: "none", securityContext }] } },
      tenant,
      "application/strategic-merge-patch+json",
    );

  test("gets no ephemeral container that is a hole", async () => {
    const { status, body } = await debug({ privileged: true });
    expect(status).toBe(403);
    expect(body.message).toContain("securityContext.privileged of a container must not be true");
  });
  test("gets an ephemeral container that is none", async () => {
    expect(await debug({})).toMatchObject({ status: 200, warnings: [] });
  });
  test("gets no annotation that orders a runtime about, but any other", async () => {
    const refused = await mergePatch(path, { metadata: { annotations: { "run.oci.handler": "krun" } } });
    expect(refused.status).toBe(403);
    expect(refused.body.message).toContain("they give orders to a runtime");
    expect(await mergePatch(path, { metadata: { annotations: { team: "a" } } })).toMatchObject({
      status: 200,
      warnings: [],
    });
  });
  test("gets nothing but resources by way of pods/resize, which is not judged", async () => {
    const is = async () => {
      const { metadata, spec } = (await ask(config, { method: "GET", path, as: admin }))
        .body as unknown as JudgedPod;
      return { annotations: metadata.annotations, spec };
    };
    const before = await is();
    const patch = {
      metadata: { annotations: { "run.oci.handler": "krun" } },
      spec: { hostPID: true, containers: [{ name: "c", securityContext: { privileged: true } }] },
    };
    const strategic = "application/strategic-merge-patch+json";
    const { status, body } = await send("PATCH", `${path}/resize`, patch, admin, strategic);
    expect({ status, said: body.message, is: await is() }).toEqual({ status: 200, is: before });
    expect((await send("PATCH", path, { metadata: patch.metadata }, admin, strategic)).status).toBe(403);
  });
  test("from before the wall can still be changed and deleted", async () => {
    // Made by the exempt account: the same as one that is older than the policy.
    const made = await send(
      "POST",
      "/api/v1/namespaces/tenant/pods",
      podOf({ hostPID: true }, { name: "older", annotations: { "run.oci.handler": "x" } }),
      { user: "system:serviceaccount:ci:runner" },
    );
    expect(made.status).toBe(201);
    const older = "/api/v1/namespaces/tenant/pods/older";
    expect((await mergePatch(older, { metadata: { labels: { a: "b" } } })).status).toBe(200);
    expect((await send("DELETE", `${older}?gracePeriodSeconds=0`, {})).status).toBe(200);
  });
});

describe("A static pod", () => {
  const mirror = (name: string) =>
    podOf(
      { nodeName: "node-a", hostPID: true },
      { name, annotations: { "kubernetes.io/config.mirror": "0123" } },
    );
  test("is shown by its kubelet as it runs: refusing the mirror would only hide it", async () => {
    const kubelet: As = { user: "system:node:node-a", groups: ["system:nodes", "system:authenticated"] };
    await client.create(
      {
        apiVersion: "rbac.authorization.k8s.io/v1",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        namespaced: false,
      },
      {
        metadata: { name: "nodes" },
        roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "tenant" },
        subjects: [{ kind: "Group", apiGroup: "rbac.authorization.k8s.io", name: "system:nodes" }],
      } as KubeObject,
    );
    const { body } = await eventually(
      "the right of the kubelet",
      () => tryPod("tenant", mirror("static"), kubelet),
      (answer) => answer?.status === 201,
    );
    if (mutates) expect(body.spec).not.toHaveProperty("runtimeClassName");
  });
  test("that a tenant feigns is judged like any other pod", async () => {
    expect((await tryPod("tenant", mirror("feigned"))).status).toBe(403);
  });
});

describe("A tenant's namespace", () => {
  const change = (tierOf: string | null, subresource = "", as?: As) =>
    mergePatch(
      `/api/v1/namespaces/tenant${subresource}?dryRun=All`,
      { metadata: { labels: { tier: tierOf } } },
      as,
    );

  test.each(["", "/status"])("keeps the label of its wall by way of namespaces%s", async (subresource) => {
    for (const to of [null, "free", "watched"]) {
      const { status, body } = await change(to, subresource);
      expect(status).toBe(403);
      expect(body.message).toContain(
        'taking namespace tenant out from behind the wall of RuntimeProfile "sandboxed" needs the right to update that profile',
      );
    }
  });
  test("keeps it by way of namespaces/finalize", async () => {
    const now = await client.get(allNamespaces, "tenant");
    const { status } = await send("PUT", "/api/v1/namespaces/tenant/finalize?dryRun=All", {
      ...now,
      metadata: { ...now.metadata, labels: { tier: "free" } },
    });
    expect(status).toBe(403);
  });
  test("does not move behind another wall", async () => {
    const { status, body } = await mergePatch("/api/v1/namespaces/free?dryRun=All", {
      metadata: { labels: { tier: "plain" } },
    });
    expect(status).toBe(403);
    expect(body.message).toContain('putting namespace free behind the wall of RuntimeProfile "plain"');
  });
  const inside = { tier: "expressive", in: "1", there: "" };
  test.each([
    [{ in: "2" }, true],
    [{ not: "3" }, true],
    [{ there: "x" }, true],
    [{ tier: "other" }, false],
    [{ in: "3" }, false],
    [{ in: null }, false],
    [{ not: "2" }, false],
    [{ there: null }, false],
    [{ gone: "" }, false],
  ])("with labels changed by %j stays or does not as the selector says", async (change, stays) => {
    const labels = Object.fromEntries(
      Object.entries({ ...inside, ...change }).filter(
        (entry): entry is [string, string] => entry[1] !== null,
      ),
    );
    expect(selects(namespaceSelector, labels)).toBe(stays);
    const { status } = await mergePatch("/api/v1/namespaces/expressive?dryRun=All", {
      metadata: { labels: change },
    });
    expect(status).toBe(stays ? 200 : 403);
  });
  test("may have any other label", async () => {
    const { status } = await mergePatch("/api/v1/namespaces/tenant?dryRun=All", {
      metadata: { labels: { team: "a" } },
    });
    expect(status).toBe(200);
  });
  test("is moved by whoever may update the profile", async () => {
    expect((await change(null, "", admin)).status).toBe(200);
  });
});

describe("Exempt is", () => {
  const holey = { hostPID: true, runtimeClassName: "foreign" };
  test("a namespace by name, whatever its labels", async () => {
    expect((await create("excepted", holey)).status).toBe(201);
    expect((await create("excepted", {})).body.spec).not.toHaveProperty("runtimeClassName");
  });
  test("a service account's own request, and nobody else's", async () => {
    expect((await create("tenant", holey, { user: "system:serviceaccount:ci:runner" })).status).toBe(201);
    expect(
      (await create("tenant", holey, { user: "system:serviceaccount:ci:other", groups: ["tenants"] })).status,
    ).toBe(403);
  });
});

describe("A workload", () => {
  const template = (spec: object) => ({ metadata: { labels: { a: "b" } }, spec: podOf(spec).spec });
  const selector = { matchLabels: { a: "b" } };
  const never = { restartPolicy: "Never" };
  const kinds: [path: string, kind: string, spec: (pod: object) => object][] = [
    ["apps/v1", "Deployment", (pod) => ({ selector, template: template(pod) })],
    ["apps/v1", "StatefulSet", (pod) => ({ selector, serviceName: "s", template: template(pod) })],
    ["apps/v1", "DaemonSet", (pod) => ({ selector, template: template(pod) })],
    ["apps/v1", "ReplicaSet", (pod) => ({ selector, template: template(pod) })],
    ["batch/v1", "Job", (pod) => ({ template: template({ ...never, ...pod }) })],
    [
      "batch/v1",
      "CronJob",
      (pod) => ({ schedule: "@daily", jobTemplate: { spec: { template: template({ ...never, ...pod }) } } }),
    ],
    ["v1", "ReplicationController", (pod) => ({ selector: { a: "b" }, template: template(pod) })],
  ];
  const apply = (apiVersion: string, kind: string, spec: object, metadata: object = {}, where = "tenant") =>
    send(
      "POST",
      `${apiVersion === "v1" ? "/api" : "/apis"}/${apiVersion}/namespaces/${where}/${kind.toLowerCase()}s?dryRun=All`,
      { apiVersion, kind, metadata: { name: "w", ...metadata }, spec },
    );

  test.each(kinds)("%s %s whose pods will be refused says so at its own apply", async (api, kind, spec) => {
    const { status, warnings } = await apply(api, kind, spec({ hostPID: true, runtimeClassName: "plain" }));
    expect(status).toBe(201);
    expect(warnings).toHaveLength(2);
    expect(warnings.join()).toContain("spec.hostPID must not be true");
    expect(warnings.join()).toContain("must be one of sandboxed, machine, watched; it is plain");
  });
  test.each(kinds)("%s %s whose pods will get the class says nothing", async (api, kind, spec) => {
    const { status, warnings } = await apply(api, kind, spec({}));
    expect(status).toBe(201);
    // Where nothing gives them one, their owner learns that they will be refused.
    if (mutates) expect(warnings).toEqual([]);
    else expect(warnings.join()).toContain("must be one of sandboxed, machine, watched; it is not set");
  });
  test("says so where no class is given by default", async () => {
    const { warnings } = await apply(
      ...(kinds[0]!.slice(0, 2) as [string, string]),
      kinds[0]![2]({}),
      {},
      "watched",
    );
    expect(warnings.join()).toContain("must be one of watched, machine, sandboxed; it is not set");
  });
  test("of a workload says nothing: its owner did", async () => {
    const owner = { apiVersion: "apps/v1", kind: "Deployment", name: "w", uid: "1", controller: true };
    const { warnings } = await apply("apps/v1", "ReplicaSet", kinds[3]![2]({ hostPID: true }), {
      ownerReferences: [owner],
    });
    expect(warnings).toEqual([]);
  });
});

describe("In Audit", () => {
  test.each(holes)("%s is let in, with a warning where it reaches the node", async (name, pod) => {
    const rule = rules.find((is) => is.name === name);
    const named = { ...pod, spec: { ...pod.spec, runtimeClassName: "watched" } };
    const { status, warnings } = await tryPod("watched", named);
    expect(status).toBe(201);
    expect(warnings).toHaveLength(rule?.sharedKernelOnly ? 0 : 1);
    if (!rule?.sharedKernelOnly) expect(warnings[0]).toContain(rule?.message);
  });

  test("the audit log has what was weak, and the API server counts it", async () => {
    await tryPod("watched", podOf({ hostPID: true }, { name: "recorded" }));
    const entry = (await readFile(auditLog, "utf8"))
      .split("\n")
      .filter((line) => line.includes('"namespace":"watched"') && line.includes('"name":"recorded"'))
      .map((line) => JSON.parse(line) as { annotations?: Record<string, string> })
      .findLast((line) => line.annotations?.["watched.tenancy.bulkhead.dev/outside-the-wall"]);
    expect(entry?.annotations).toMatchObject({
      "watched.tenancy.bulkhead.dev/outside-the-wall": "RuntimeClass,HostPID",
    });
    // The API server writes the first failure only: ours has them all.
    const failure = entry?.annotations?.["validation.policy.admission.k8s.io/validation_failure"];
    expect(failure).toContain("spec.runtimeClassName must be one of watched");

    const metrics = (await ask(config, { method: "GET", path: "/metrics" })).body.message;
    for (const [action, policy] of [
      ["audit", "watched"],
      ["warn", "watched"],
      ["deny", "sandboxed"],
    ]) {
      expect(metrics).toMatch(
        new RegExp(
          `apiserver_validating_admission_policy_check_total\\{enforcement_action="${action}",[^}]*policy="${policy}\\.tenancy\\.bulkhead\\.dev"[^}]*\\} [1-9]`,
        ),
      );
    }
  });
});
