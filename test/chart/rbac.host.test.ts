import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { labels } from "@bulkhead/lib/api/group.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { type KubeConfig, kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import {
  agentPods,
  daemonSets,
  namespaces,
  nodeRuntimes,
  nodes,
  pods,
  runtimeClasses,
  runtimeProfiles,
  templateRevisions,
  validatingPolicies,
} from "@bulkhead/lib/kube/resources.ts";
import { dump, load, loadAll } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Answer, ask } from "../apiserver/ask.ts";
import { installCrds } from "../apiserver/crds.ts";
import { type ApiServer, startApiServer } from "../apiserver/start.ts";
import { eventually, startOperator } from "../operator/start.ts";
import { inCache } from "../tools/cache.ts";
import { run } from "../tools/run.ts";
import { chart } from "./values.ts";

/** What each service account of the chart may do: asked of a real API server to which the rendered chart was applied. */

const home = "bulkhead-system";
const whole = <T extends KubeObject>(resource: Resource<T>): Resource<T> => ({
  ...resource,
  metadataOnly: false,
});
const serviceAccounts: Resource<KubeObject> = {
  apiVersion: "v1",
  kind: "ServiceAccount",
  plural: "serviceaccounts",
  namespaced: true,
};
/** The chart's objects that decide what is allowed. */
const kinds: Record<string, string> = {
  ServiceAccount: "serviceaccounts",
  ClusterRole: "clusterroles",
  ClusterRoleBinding: "clusterrolebindings",
  Role: "roles",
  RoleBinding: "rolebindings",
  ValidatingAdmissionPolicy: "validatingadmissionpolicies",
  ValidatingAdmissionPolicyBinding: "validatingadmissionpolicybindings",
};

let server: ApiServer;
let config: KubeConfig;
let client: Client;

beforeAll(async () => {
  server = await startApiServer();
  config = await kubeconfigFile(server.kubeconfig);
  client = createClient({ config });
  await installCrds(client);
  await client.create(whole(namespaces), { metadata: { name: home } });
  const rendered = await run([inCache("bin/helm"), "template", "bulkhead", chart, "--namespace", home]);
  for (const object of loadAll(rendered) as (KubeObject | null)[]) {
    const plural = kinds[object?.kind ?? ""];
    if (!object || plural === undefined) continue;
    const resource = {
      apiVersion: object.apiVersion ?? "",
      kind: object.kind ?? "",
      plural,
      namespaced: object.metadata.namespace !== undefined,
    };
    await client.create(resource, object);
  }
  // An account that was given nothing, to know what everybody may.
  await client.create(serviceAccounts, { metadata: { name: "nobody", namespace: home } });
  for (const name of ["node-a", "node-b"]) {
    await client.create(whole(nodes), { metadata: { name, labels: { "kubernetes.io/os": "linux" } } });
    await client.create(nodeRuntimes, { metadata: { name }, spec: { profiles: [] } } as never);
  }
});
afterAll(async () => {
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});

/** A token as a kubelet asks for it: bound to a pod, and so to that pod's node. */
const tokenOf = async (account: string, boundTo?: { node: string; pod: string }): Promise<string> => {
  const pod =
    boundTo &&
    (await client.create(pods, {
      metadata: { name: boundTo.pod, namespace: home },
      spec: {
        serviceAccountName: account,
        nodeName: boundTo.node,
        containers: [{ name: "c", image: "none" }],
      },
    } as never));
  const { body } = await ask(config, {
    method: "POST",
    path: `/api/v1/namespaces/${home}/serviceaccounts/${account}/token`,
    body: {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: {
        audiences: [],
        ...(pod
          ? {
              boundObjectRef: {
                apiVersion: "v1",
                kind: "Pod",
                name: pod.metadata.name,
                uid: pod.metadata.uid,
              },
            }
          : {}),
      },
    },
  });
  return (body.status as { token: string }).token;
};
const withToken = (token: string): KubeConfig => ({
  ...config,
  headers: async () => ({ authorization: `Bearer ${token}` }),
});

type Rule = { verbs: string[]; apiGroups?: string[]; resources?: string[]; resourceNames?: string[] };
/** What an account may do in a namespace, one line a resource: `RESOURCE.GROUP[/NAMES]: VERBS`. */
const mayDo = async (account: string, namespace: string): Promise<Set<string>> => {
  const as = withToken(await tokenOf(account));
  // A busy API server takes a moment until it knows an account that was just made.
  const { body } = await eventually(
    `an answer to ${account}`,
    () =>
      ask(as, {
        method: "POST",
        path: "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        body: { apiVersion: "authorization.k8s.io/v1", kind: "SelfSubjectRulesReview", spec: { namespace } },
      }),
    (answer) => answer?.status === 201,
  );
  const { resourceRules, incomplete } = body.status as { resourceRules: Rule[]; incomplete: boolean };
  expect(incomplete).toBe(false);
  return new Set(
    resourceRules.flatMap(({ verbs, apiGroups = [], resources = [], resourceNames = [] }) =>
      apiGroups.flatMap((apiGroup) =>
        resources.map(
          (resource) =>
            `${resource}${apiGroup ? `.${apiGroup}` : ""}${resourceNames.length > 0 ? ` (${resourceNames})` : ""}: ${verbs.join(" ")}`,
        ),
      ),
    ),
  );
};

const agent = [
  "events.events.k8s.io: create patch",
  "noderuntimes.bulkhead.dev: get list watch",
  "noderuntimes/status.bulkhead.dev: patch",
];
const signs = ["leases.coordination.k8s.io: create patch"];
const operator = [
  "events.events.k8s.io: create patch",
  "mutatingadmissionpolicies.admissionregistration.k8s.io: list watch create update delete",
  "mutatingadmissionpolicybindings.admissionregistration.k8s.io: list watch create update delete",
  "namespaces: list watch",
  "noderuntimes.bulkhead.dev: list watch create patch delete",
  "nodes: get list watch patch",
  "pods: list watch",
  "runtimeclasses.node.k8s.io: list watch create update delete",
  "runtimeprofiles.bulkhead.dev: get list watch patch",
  "runtimeprofiles/status.bulkhead.dev: patch",
  "validatingadmissionpolicies.admissionregistration.k8s.io: list watch create update delete",
  "validatingadmissionpolicybindings.admissionregistration.k8s.io: list watch create update delete",
];
const leader = [
  "controllerrevisions.apps: list watch create patch delete",
  "daemonsets.apps: list watch",
  "leases.coordination.k8s.io (bulkhead-operator): get update",
  "leases.coordination.k8s.io: list watch create",
  "pods: get delete",
];
const uninstall = [
  "noderuntimes.bulkhead.dev: list",
  "pods: list",
  "runtimeprofiles.bulkhead.dev: list delete",
];

/** Of `helm test`; Helm takes them away with it. */
const tests = ["noderuntimes.bulkhead.dev: list", "runtimeprofiles.bulkhead.dev: list"];

describe("May do, and nothing else:", () => {
  test.each([
    ["bulkhead-node-agent", home, [...agent, ...signs]],
    ["bulkhead-node-agent", "kube-system", agent],
    ["bulkhead-operator", home, [...operator, ...leader]],
    ["bulkhead-operator", "kube-system", operator],
    ["bulkhead-test", home, [...tests, "leases.coordination.k8s.io (bulkhead-operator): get"]],
    ["bulkhead-test", "kube-system", tests],
    ["bulkhead-uninstall", home, [...uninstall, "leases.coordination.k8s.io (bulkhead-operator): get"]],
    ["bulkhead-uninstall", "kube-system", uninstall],
  ])("%s in %s", async (account, namespace, allowed) => {
    const everybody = await mayDo("nobody", namespace);
    const own = [...(await mayDo(account, namespace))].filter((line) => !everybody.has(line));
    expect(own.sort()).toEqual([...allowed].sort());
  });

  test("every service account of the chart is in that list", async () => {
    const { items } = await client.list(serviceAccounts, { namespace: home });
    expect(items.map(({ metadata }) => metadata.name).sort()).toEqual([
      "bulkhead-node-agent",
      "bulkhead-operator",
      "bulkhead-test",
      "bulkhead-uninstall",
      "nobody",
    ]);
  });
});

describe("The agent of node-a", () => {
  let token: string;
  beforeAll(async () => {
    token = await tokenOf("bulkhead-node-agent", { node: "node-a", pod: "agent-a" });
    // The API server takes a moment until it acts by a policy: until then node-b's status could be written.
    await eventually(
      "the policies",
      () => status("node-b", token, "?dryRun=All"),
      // Not by RBAC, which may not know the account yet either.
      (answer) => answer?.body.message?.includes("may not write the NodeRuntime") ?? false,
    );
    await eventually(
      "the policy of Events",
      () => event("probe", { kind: "Pod", name: "x" }, "?dryRun=All"),
      (answer) => answer?.body.message?.includes("may only record Events") ?? false,
    );
    await eventually(
      "the policy of Leases",
      () => makeLease("probe", token, "?dryRun=All"),
      (answer) => answer?.body.message?.includes("may only write the Lease") ?? false,
    );
  });
  const call = (method: string, path: string, body: object, as = token, contentType?: string) =>
    ask(withToken(as), { method, path, body, ...(contentType ? { contentType } : {}) });
  const merge = "application/merge-patch+json";
  const runtime = (name: string) => `/apis/bulkhead.dev/v1alpha1/noderuntimes/${name}`;
  const status = (node: string, as = token, query = ""): Promise<Answer> =>
    call("PATCH", `${runtime(node)}/status${query}`, { status: { kernel: "6.1" } }, as, merge);
  const leaseFields = (renewTime: string, label = "bulkhead-agent") => ({
    metadata: { labels: { "app.kubernetes.io/managed-by": label } },
    spec: { holderIdentity: "x", renewTime },
  });
  const leasesPath = `/apis/coordination.k8s.io/v1/namespaces/${home}/leases`;
  const makeLease = (name: string, as = token, query = "", label?: string) => {
    const { metadata, spec } = leaseFields("2026-01-01T00:00:00.000000Z", label);
    return call("POST", `${leasesPath}${query}`, { metadata: { ...metadata, name }, spec }, as);
  };
  const renewLease = (name: string, as = token, body: object = leaseFields("2026-01-01T00:01:00.000000Z")) =>
    call("PATCH", `${leasesPath}/${name}`, body, as, merge);
  const events = "/apis/events.k8s.io/v1/namespaces/default/events";
  /** All that may change of an Event. */
  const again = { series: { count: 2, lastObservedTime: "2026-01-01T00:01:00.000000Z" } };
  const event = (name: string, regarding: object, query = "") =>
    call("POST", `${events}${query}`, {
      metadata: { name },
      eventTime: "2026-01-01T00:00:00.000000Z",
      reportingController: "bulkhead.dev/agent",
      reportingInstance: "node-a",
      action: "Try",
      reason: "Try",
      type: "Normal",
      note: "",
      regarding: { apiVersion: "bulkhead.dev/v1alpha1", ...regarding },
    });

  test("writes its own NodeRuntime's status, and speaks of it", async () => {
    expect((await status("node-a")).status).toBe(200);
    expect((await event("own", { kind: "NodeRuntime", name: "node-a" })).status).toBe(201);
    expect((await call("PATCH", `${events}/own`, again, token, merge)).status).toBe(200);
  });

  test("makes and renews the Lease of its node, and no other's", async () => {
    expect((await makeLease("node-a")).status).toBe(201);
    expect((await renewLease("node-a")).status).toBe(200);
    const foreign = (name: string, label: string) =>
      ask(config, {
        method: "POST",
        path: leasesPath,
        body: { metadata: { name, labels: { "app.kubernetes.io/managed-by": label } } },
      });
    expect((await foreign("node-b", "bulkhead-agent")).status).toBe(201);
    expect((await foreign("bulkhead-operator", "bulkhead-agent")).status).toBe(201);
    // Of their nodes' names and of another's making: a control plane's, where Bulkhead shares its namespace.
    expect((await foreign("kube-scheduler", "kube")).status).toBe(201);
    const tokenOn = (node: string) => tokenOf("bulkhead-node-agent", { node, pod: `agent-on-${node}` });
    const [scheduler, leader] = [await tokenOn("kube-scheduler"), await tokenOn("bulkhead-operator")];
    const refused: [what: string, answer: Answer][] = [
      ["another node's", await renewLease("node-b")],
      ["the operator's", await renewLease("bulkhead-operator")],
      ["a new one of another name", await makeLease("node-c")],
      ["one of another's making", await renewLease("kube-scheduler", scheduler)],
      ["the operator's, from a node of that name", await renewLease("bulkhead-operator", leader)],
      [
        "its own, made another's",
        await renewLease("node-a", token, leaseFields("2026-01-01T00:01:00.000000Z", "x")),
      ],
      [
        "its own, by a token bound to no pod",
        await renewLease("node-a", await tokenOf("bulkhead-node-agent")),
      ],
    ];
    for (const [what, { status: code, body }] of refused) {
      expect([what, code]).toEqual([what, 403]);
      expect(body.message).toContain("may only write the Lease of its own node");
    }
    const elsewhere = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    for (const [method, path, body] of [
      ["DELETE", `${leasesPath}/node-a`],
      ["GET", `${leasesPath}/node-a`],
      ["GET", leasesPath],
      ["POST", elsewhere, { metadata: { name: "node-a" } }],
    ] as const) {
      const { status: code } = await ask(withToken(token), { method, path, ...(body ? { body } : {}) });
      expect([method, code]).toEqual([method, 403]);
    }
    await ask(config, { method: "DELETE", path: `${leasesPath}/bulkhead-operator` });
  });

  test("does not write another node's, and is told why", async () => {
    const { status: code, body } = await status("node-b");
    expect(code).toBe(403);
    expect(body.message).toContain('the agent of node "node-a" may not write the NodeRuntime of "node-b"');
    expect((await client.get(nodeRuntimes, "node-b")).status).toBeUndefined();
  });

  const apply = "application/apply-patch+yaml";
  const applied = (name: string) => ({
    apiVersion: "bulkhead.dev/v1alpha1",
    kind: "NodeRuntime",
    metadata: { name },
    status: { kernel: "6.1" },
  });
  const forced = "?fieldManager=bulkhead-agent&force=true";
  const tries: [title: string, method: string, path: string, body: object, type?: string][] = [
    ["by an apply", "PATCH", `${runtime("node-b")}/status${forced}`, applied("node-b"), apply],
    [
      "by an apply in its own name",
      "PATCH",
      `${runtime("node-b")}/status${forced}`,
      applied("node-a"),
      apply,
    ],
    ["of a node that is none", "PATCH", `${runtime("node-c")}/status${forced}`, applied("node-c"), apply],
    ["by putting it", "PUT", `${runtime("node-b")}/status`, applied("node-b")],
    ["of its own spec", "PATCH", runtime("node-a"), { spec: { profiles: [] } }, merge],
    ["by a new NodeRuntime", "POST", "/apis/bulkhead.dev/v1alpha1/noderuntimes", applied("node-d")],
    ["by deleting it", "DELETE", runtime("node-b"), {}],
    ["by deleting them all", "DELETE", "/apis/bulkhead.dev/v1alpha1/noderuntimes", {}],
    ["of its Node", "PATCH", "/api/v1/nodes/node-a", { metadata: { labels: { a: "b" } } }, merge],
    [
      "by a token of its account",
      "POST",
      `/api/v1/namespaces/${home}/serviceaccounts/bulkhead-node-agent/token`,
      {},
    ],
    ["by a pod of its account", "POST", `/api/v1/namespaces/${home}/pods`, { metadata: { name: "x" } }],
    ["by an Event in another form", "POST", "/api/v1/namespaces/default/events", { metadata: { name: "x" } }],
  ];
  test.each(tries)("does not write %s", async (_title, method, path, body, type) => {
    const answer = await call(method, path, body, token, type);
    expect([400, 403, 404]).toContain(answer.status);
    expect((await client.get(nodeRuntimes, "node-b")).status).toBeUndefined();
  });

  test("does not become another by asking to", async () => {
    const answer = await ask(
      {
        ...withToken(token),
        headers: async () => ({
          authorization: `Bearer ${token}`,
          "impersonate-user": `system:serviceaccount:${home}:bulkhead-node-agent`,
          "impersonate-extra-authentication.kubernetes.io%2Fnode-name": "node-b",
        }),
      },
      { method: "PATCH", path: `${runtime("node-b")}/status`, body: { status: {} }, contentType: merge },
    );
    expect(answer.status).toBe(403);
    expect(answer.body.message).toContain("cannot impersonate");
  });

  test("does not speak of what is not its own, or change what another said", async () => {
    for (const regarding of [
      { kind: "NodeRuntime", name: "node-b" },
      { kind: "Node", name: "node-a" },
      { kind: "RuntimeProfile", name: "node-a" },
    ]) {
      const { status: code, body } = await event("foreign", regarding);
      expect(code).toBe(403);
      expect(body.message).toContain("may only record Events about its own NodeRuntime");
    }
    const { status: made } = await ask(config, {
      method: "POST",
      path: events,
      body: {
        metadata: { name: "theirs" },
        eventTime: "2026-01-01T00:00:00.000000Z",
        ...{ reportingController: "x", reportingInstance: "x", action: "x", reason: "x", type: "Normal" },
        regarding: { kind: "NodeRuntime", name: "node-b" },
      },
    });
    expect(made).toBe(201);
    const { status: code, body } = await call("PATCH", `${events}/theirs`, again, token, merge);
    expect(code).toBe(403);
    expect(body.message).toContain("may only record Events about its own NodeRuntime");
  });

  test("writes nothing by a token that is bound to no pod", async () => {
    expect((await status("node-a", await tokenOf("bulkhead-node-agent"))).status).toBe(403);
  });

  test("is nobody once its pod is gone", async () => {
    const lost = await tokenOf("bulkhead-node-agent", { node: "node-a", pod: "agent-gone" });
    expect((await status("node-a", lost)).status).toBe(200);
    await ask(config, {
      method: "DELETE",
      path: `/api/v1/namespaces/${home}/pods/agent-gone?gracePeriodSeconds=0`,
    });
    // The API server believes a token for ten seconds after it last looked.
    await eventually(
      "the end of the token",
      () => status("node-a", lost),
      (is) => is?.status === 401,
      20_000,
    );
  });
});

/** An agent of node-a that the DaemonSet has a newer template for: what its controller would have made. */
const earlierAgent = async () => {
  const agent = { "app.kubernetes.io/component": "node-agent" };
  const made = await client.create(daemonSets, {
    metadata: {
      ...{ name: "bulkhead-node-agent", namespace: home },
      annotations: { [labels.agentRollout]: "{}" },
    },
    spec: {
      updateStrategy: { type: "OnDelete" },
      selector: { matchLabels: agent },
      template: { metadata: { labels: agent }, spec: { containers: [{ name: "c", image: "none" }] } },
    },
  } as never);
  const { name, uid = "", generation } = made.metadata;
  const counts = {
    currentNumberScheduled: 1,
    numberMisscheduled: 0,
    numberReady: 1,
    desiredNumberScheduled: 1,
  };
  await client.replace(
    daemonSets,
    { ...made, status: { ...counts, observedGeneration: generation } } as never,
    { subresource: "status" },
  );
  const of = (hash: string) => ({
    namespace: home,
    labels: { ...agent, "controller-revision-hash": hash },
    ownerReferences: [{ apiVersion: "apps/v1", kind: "DaemonSet", name, uid, controller: true }],
  });
  for (const [revision, hash] of ["old", "new"].entries())
    await client.create(templateRevisions, {
      metadata: { name: hash, ...of(hash) },
      revision,
      data: {},
    } as never);
  await client.create(agentPods, {
    metadata: { name: "old-agent", ...of("old") },
    spec: { nodeName: "node-a", containers: [{ name: "c", image: "none" }] },
  } as never);
};

test("With these rights alone the operator does all its work, from a profile's coming to its going", async () => {
  const file = load(await readFile(server.kubeconfig, "utf8")) as { users: { user: object }[] };
  file.users[0]!.user = { token: await tokenOf("bulkhead-operator", { node: "node-a", pod: "operator-1" }) };
  const kubeconfig = join(server.directory, "operator.kubeconfig");
  await writeFile(kubeconfig, dump(file), { mode: 0o600 });
  await earlierAgent();
  const running = await startOperator(kubeconfig, home);
  try {
    await client.create(whole(namespaces), { metadata: { name: "tenant", labels: { tier: "tenant" } } });
    const pod = { containers: [{ name: "c", image: "none" }] };
    await client.create(pods, { metadata: { name: "older", namespace: "tenant" }, spec: pod } as never);
    await client.create(runtimeProfiles, {
      metadata: { name: "sandboxed" },
      spec: {
        handler: { gvisor: {} },
        tenancy: { namespaceSelector: { matchLabels: { tier: "tenant" } }, mode: "Enforce" },
      },
    } as never);
    const condition = (reason: string) =>
      eventually(
        reason,
        () => client.get(runtimeProfiles, "sandboxed"),
        (is) => is?.status?.conditions?.some((c) => c.reason === reason) ?? false,
      );
    await condition("PodsOutside");
    await eventually(
      "what the node shall have",
      () => client.get(nodeRuntimes, "node-a"),
      (is) => is?.spec.profiles.length === 1,
    );
    // Drift of each kind is mended, a node that goes is forgotten.
    await client.patch(runtimeClasses, "sandboxed", { overhead: { podFixed: { memory: "1Mi" } } });
    await eventually(
      "the class mended",
      () => client.get(runtimeClasses, "sandboxed"),
      (is) => is?.overhead === undefined,
    );
    await client.patch(validatingPolicies, "sandboxed.tenancy.bulkhead.dev", {
      spec: { failurePolicy: "Ignore" },
    });
    await eventually(
      "the policy mended",
      () => client.get(validatingPolicies, "sandboxed.tenancy.bulkhead.dev"),
      (is) => is?.spec.failurePolicy === "Fail",
    );
    await eventually(
      "the agent of an earlier version asked to end",
      () => client.get(agentPods, "old-agent", { namespace: home }),
      (is) => is === undefined || is.metadata.deletionTimestamp !== undefined,
    );
    await client.delete(nodes, "node-b");
    await eventually(
      "node-b forgotten",
      () => client.get(nodeRuntimes, "node-b"),
      (is) => is === undefined,
    );
    await eventually(
      "the Event for the tenant",
      () => ask(config, { method: "GET", path: "/apis/events.k8s.io/v1/namespaces/tenant/events" }),
      (answer) => JSON.stringify(answer?.body).includes("PodsOutside"),
    );
    await client.delete(runtimeProfiles, "sandboxed");
    await eventually(
      "the node told",
      () => client.get(nodeRuntimes, "node-a"),
      (is) => is?.spec.profiles.length === 0,
    );
    await eventually(
      "no profile",
      () => client.get(runtimeProfiles, "sandboxed"),
      (is) => is === undefined,
    );
    expect(running.lines.filter((line) => /forbidden|permission/i.test(line))).toEqual([]);
  } finally {
    await running.kill("SIGTERM");
  }
});
