import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { labels } from "@bulkhead/lib/api/group.ts";
import { AgentRollout } from "@bulkhead/lib/view/agents.ts";
import { load, loadAll } from "js-yaml";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { inCache } from "../tools/cache.ts";
import { kubernetesVersions } from "../tools/kubernetes.ts";
import { outcome } from "../tools/run.ts";
import { all, chart } from "./values.ts";

/** What helm itself says of the chart, and what it makes of it. */

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-chart-"));
});
afterAll(() => rm(directory, { recursive: true }));

const helm = (...argv: string[]) =>
  outcome([inCache("bin/helm"), ...argv], {
    env: { HELM_CACHE_HOME: directory, HELM_CONFIG_HOME: directory, HELM_DATA_HOME: directory },
  });
const template = async (values: object = {}) => {
  const file = join(directory, "values.json");
  await writeFile(file, JSON.stringify(values));
  return helm("template", "bulkhead", chart, "--namespace", "bulkhead-system", "--values", file);
};

type Manifest = {
  kind: string;
  metadata: { name: string; namespace?: string; annotations?: Record<string, string> };
  spec?: Record<string, unknown>;
};
const render = async (values: object = {}): Promise<Manifest[]> => {
  const { code, stdout, stderr } = await template(values);
  expect(stderr).toBe("");
  expect(code).toBe(0);
  return (loadAll(stdout) as (Manifest | null)[]).filter((manifest) => manifest !== null);
};

const clusterWide = [
  "ClusterRole",
  "ClusterRoleBinding",
  "ValidatingAdmissionPolicy",
  "ValidatingAdmissionPolicyBinding",
];

test("values.yaml, its schema and the tests' other values name the same keys", async () => {
  type Schema = { properties?: Record<string, Schema> };
  const read = (file: string) => readFile(join(chart, file), "utf8");
  const schema = JSON.parse(await read("values.schema.json")) as Schema;
  /** Paths of all keys that the schema knows by name. */
  const keys = (values: object, known: Schema, path = ""): string[] =>
    Object.entries(values).flatMap(([key, value]) => {
      const here = `${path}${key}`;
      const below = known.properties?.[key];
      if (below === undefined) return [`${here}, which the schema does not know`];
      return below.properties ? [here, ...keys(value as object, below, `${here}.`)] : [here];
    });
  const inSchema = ({ properties = {} }: Schema, path = ""): string[] =>
    Object.entries(properties).flatMap(([key, below]) => [
      `${path}${key}`,
      ...inSchema(below, `${path}${key}.`),
    ]);
  const defaults = keys(load(await read("values.yaml")) as object, schema).sort();
  // Helm's own.
  expect(
    inSchema(schema)
      .filter((key) => key !== "global")
      .sort(),
  ).toEqual(defaults);
  expect(keys(all, schema).sort()).toEqual(defaults);
});

test("helm lint finds nothing, strictly", async () => {
  const { code, stdout } = await helm("lint", "--strict", chart);
  expect(stdout).not.toMatch(/\[(WARNING|ERROR)\]/);
  expect(code).toBe(0);
});

test("the oldest Kubernetes that helm lets through is the one that README.md and docs/install.md name, and that ./dev versions begins with", async () => {
  const read = (path: string) => readFile(join(chart, "../..", path), "utf8");
  const said = async (path: string, pattern: RegExp) => pattern.exec(await read(path))?.[1];
  const oldest = await said("charts/bulkhead/Chart.yaml", /^kubeVersion: ">=([0-9.]+)\.0-0"$/m);
  expect(oldest).toBe(Object.keys(kubernetesVersions)[0]);
  expect(await said("README.md", /Kubernetes ([0-9.]+) or later/)).toBe(oldest);
  expect(await said("docs/install.md", /\| Kubernetes \| ([0-9.]+) or later/)).toBe(oldest);
});

describe.each([
  ["default values", {}],
  ["every optional value", all],
])("With %s", (_title, values) => {
  test("the chart renders objects that each have a name once, in the release's namespace", async () => {
    const manifests = await render(values);
    const names = manifests.map(({ kind, metadata }) => `${kind}/${metadata.name}`);
    expect(new Set(names).size).toBe(names.length);
    for (const { kind, metadata } of manifests)
      expect(metadata.namespace, `${kind}/${metadata.name}`).toBe(
        clusterWide.includes(kind) ? undefined : "bulkhead-system",
      );
  });

  test("no value is left over as <no value> or null", async () => {
    const { stdout } = await template(values);
    expect(stdout).not.toMatch(/<no value>|: null$|<nil>/m);
  });
});

test("every optional value arrives where it belongs", async () => {
  const manifests = await render(all);
  const podOf = (kind: string, name: string) => {
    const found = manifests.find((manifest) => manifest.kind === kind && manifest.metadata.name === name);
    if (found === undefined) throw new Error(`Cannot find ${kind} ${name}`);
    return (found.spec as { template: { spec: Record<string, unknown> } }).template.spec;
  };
  const operator = podOf("Deployment", "bulkhead-operator");
  const agent = podOf("DaemonSet", "bulkhead-node-agent");
  const uninstall = podOf("Job", "bulkhead-uninstall");
  for (const pod of [operator, agent, uninstall]) {
    expect(pod.imagePullSecrets).toEqual(all.image.pullSecrets);
    for (const container of pod.containers as { image: string; imagePullPolicy: string }[]) {
      expect(container.image).toMatch(
        /^registry\.test:5000\/walls\/(operator@sha256:0{64}|node-agent@sha256:1{64})$/,
      );
      expect(container.imagePullPolicy).toBe("Always");
    }
  }
  expect(operator).toMatchObject({
    nodeSelector: all.operator.nodeSelector,
    tolerations: all.operator.tolerations,
    affinity: all.operator.affinity,
    priorityClassName: all.operator.priorityClassName,
    topologySpreadConstraints: all.operator.topologySpreadConstraints,
    containers: [
      {
        resources: all.operator.resources,
        args: expect.arrayContaining([`--trace-endpoint=${all.tracing.endpoint}`, "--trace-sampling=0.25"]),
      },
    ],
  });
  expect(agent).toMatchObject({
    nodeSelector: all.agent.nodeSelector,
    tolerations: all.agent.tolerations,
    priorityClassName: all.agent.priorityClassName,
    containers: [
      {
        resources: all.agent.reporter.resources,
        args: expect.arrayContaining([`--trace-endpoint=${all.tracing.endpoint}`, "--trace-sampling=0.25"]),
      },
      {
        resources: all.agent.installer.resources,
        args: expect.arrayContaining([
          `--artifact-registry=${all.artifacts.registry}`,
          `--trace-endpoint=${all.tracing.endpoint}`,
          "--trace-sampling=0.25",
          `--trace-node-endpoint=${all.tracing.nodeEndpoint}`,
          `--runtime-config=${JSON.stringify(all.runtime.config)}`,
          "--runtime-files=/runtime-files",
        ]),
        env: expect.arrayContaining([
          { name: "HTTP_PROXY", value: all.runtime.proxy.http },
          { name: "HTTPS_PROXY", value: all.runtime.proxy.https },
          { name: "NO_PROXY", value: "10.0.0.0/8,.svc" },
        ]),
        volumeMounts: expect.arrayContaining([
          { name: "runtime-files", mountPath: "/runtime-files", readOnly: true },
        ]),
      },
    ],
  });
  const env = (operator.containers as { env: { name: string; value?: string }[] }[])[0]?.env;
  expect(env).toContainEqual({ name: "KUBERNETES_SERVICE_HOST", value: "api.test" });
  expect(env).toContainEqual({ name: "KUBERNETES_SERVICE_PORT", value: "6443" });
  expect(JSON.stringify(manifests)).not.toContain("prometheus.io/scrape");
});

test("monitoring is there when it is asked for, with its labels, its interval and its links", async () => {
  const kinds = async (values: object) =>
    (await render(values)).filter(({ kind }) => /Monitor|Rule$|ConfigMap/.test(kind));
  expect(await kinds({})).toEqual([]);
  const found = await kinds(all);
  expect(found.map(({ kind }) => kind)).toEqual([
    "ConfigMap",
    "ConfigMap",
    "ConfigMap",
    "PrometheusRule",
    "ServiceMonitor",
  ]);
  for (const { kind, metadata } of found)
    expect((metadata as { labels?: object }).labels, kind).toMatchObject(
      kind === "ConfigMap" ? all.metrics.dashboards.labels : all.metrics.prometheusOperator.labels,
    );
  const [rules, monitor] = found.slice(3);
  expect(monitor?.spec).toMatchObject({ endpoints: [{ interval: "15s" }] });
  expect(JSON.stringify(rules?.spec)).toContain("https://wiki.test/runbook#bulkheadcanaryfailing");
  expect(JSON.stringify(rules?.spec)).not.toContain("RUNBOOK");
});

test("extra labels are on every object and every pod, and never in a selector", async () => {
  for (const { kind, metadata, spec } of await render(all)) {
    expect((metadata as { labels?: object }).labels, `${kind}/${metadata.name}`).toMatchObject(
      all.extraLabels,
    );
    const { template, selector } = (spec ?? {}) as { template?: { metadata: object }; selector?: object };
    if (template) expect(template.metadata, kind).toMatchObject({ labels: all.extraLabels });
    expect(JSON.stringify(selector ?? {}), kind).not.toContain("team");
  }
});

test("the operator may evict pods only where that is asked for", async () => {
  const role = async (values: object) =>
    JSON.stringify((await render(values)).filter(({ metadata }) => metadata.name === "bulkhead-operator"));
  expect(await role({})).not.toContain("eviction");
  expect(await role({ operator: { mayEvict: true } })).toContain(
    '"resources":["pods/eviction"],"verbs":["create"]',
  );
});

test("the agents' rollout stands with their template, as the operator reads it", async () => {
  const annotations = async (values: object) => {
    const found = (await render(values)).find(({ kind }) => kind === "DaemonSet");
    const { [labels.agentRollout]: text = "", ...rest } = found?.metadata.annotations ?? {};
    const settings = AgentRollout.strict().parse(JSON.parse(text));
    expect(found?.spec).toMatchObject({
      updateStrategy: { type: "OnDelete" },
      minReadySeconds: settings.minReadySeconds,
    });
    return { settings, rest };
  };
  expect(await annotations({})).toEqual({ settings: AgentRollout.parse({}), rest: {} });
  const { paused: _, ...settings } = all.agent.rollout;
  expect(await annotations(all)).toEqual({ settings, rest: { [labels.agentRolloutPaused]: "true" } });
});

test("two replicas are spread over nodes and drained one at a time; one replica holds up no drain", async () => {
  const find = async (values: object, kind: string) =>
    (await render(values)).find((each) => each.kind === kind);
  const two = { operator: { replicas: 2 } };
  expect((await find(two, "PodDisruptionBudget"))?.spec).toMatchObject({ maxUnavailable: 1 });
  expect(JSON.stringify(await find(two, "Deployment"))).toContain('"topologyKey":"kubernetes.io/hostname"');
  expect(await find({}, "PodDisruptionBudget")).toBeUndefined();
});

test("the reporter has a user of its own: it shares the host's process ids, and may signal who has the same", async () => {
  type Container = { name: string; securityContext: { runAsUser: number; runAsGroup: number } };
  const users = (await render()).flatMap(({ spec }) => {
    const pod = (spec as { template?: { spec: { containers: Container[] } } } | undefined)?.template?.spec;
    return (pod?.containers ?? []).map(
      ({ name, securityContext: is }) => [name, is.runAsUser, is.runAsGroup] as const,
    );
  });
  const [, uid, gid] = users.find(([name]) => name === "reporter") ?? [];
  expect([uid, gid]).toEqual([64473, 64473]);
  for (const [name, ...is] of users.filter(([name]) => name !== "reporter"))
    expect([uid, gid], name).not.toEqual(is);
  // "nonroot" of many images, and nobody.
  for (const common of [0, 65532, 65534]) expect(uid).not.toBe(common);
});

test("the status page is on its pod's loopback, without a Service, unless it is to be exposed", async () => {
  const page = async (values: object) => {
    const manifests = await render(values);
    return {
      address: JSON.stringify(manifests).match(/--page-address=[^"]*/)?.[0],
      service: manifests.some(({ metadata }) => metadata.name === "bulkhead-status"),
      open: JSON.stringify(manifests.filter(({ kind }) => kind === "NetworkPolicy")).includes("8081"),
    };
  };
  const closed = { ...all.networkPolicy };
  expect(await page({ networkPolicy: closed })).toEqual({
    address: "--page-address=127.0.0.1:8081",
    service: false,
    open: false,
  });
  expect(await page({ statusPage: { expose: true }, networkPolicy: closed })).toEqual({
    address: "--page-address=:8081",
    service: true,
    open: true,
  });
  expect(await page({ statusPage: { enabled: false, expose: true } })).toEqual({
    address: "--page-address=",
    service: false,
    open: false,
  });
});

test("a network policy lets in who is named, and nobody to the status page by default", async () => {
  const policy = async (values: object) =>
    (await render(values)).find(({ kind }) => kind === "NetworkPolicy")?.spec as
      | {
          ingress: { ports: { port: unknown }[]; from?: object[] }[];
          egress: { ports: { port: unknown }[] }[];
        }
      | undefined;
  expect(await policy({})).toBeUndefined();
  const open = await policy({ networkPolicy: { enabled: true } });
  expect(open?.ingress).toEqual([{ ports: [{ protocol: "TCP", port: "metrics" }] }]);
  const closed = await policy(all);
  expect(closed?.ingress.map(({ from }) => from)).toEqual([
    all.networkPolicy.metricsFrom,
    all.networkPolicy.statusPageFrom,
  ]);
  expect(closed?.egress[0]?.ports).toEqual([{ protocol: "TCP", port: 8443 }]);
  expect(open?.egress).toHaveLength(2);
  const ports = async (endpoint: string) =>
    (await policy({ networkPolicy: { enabled: true }, tracing: { endpoint } }))?.egress[2]?.ports;
  expect(await ports("http://collector.monitoring:4318/otlp")).toEqual([{ protocol: "TCP", port: 4318 }]);
  expect(await ports("https://traces.test")).toEqual([{ protocol: "TCP", port: 443 }]);
});

test("without uninstall.enabled nothing of the uninstaller is there", async () => {
  const names = (await render({ uninstall: { enabled: false } })).map(({ metadata }) => metadata.name);
  expect(names.filter((name) => name.includes("uninstall"))).toEqual([]);
});

describe("values.schema.json refuses, naming the key,", () => {
  const refused: [title: string, values: object, names: RegExp][] = [
    ["an unknown key", { agnet: {} }, /agnet/],
    ["an unknown key of a part", { operator: { replica: 2 } }, /operator.*replica/s],
    ["a digest that is none", { image: { digests: { operator: "latest" } } }, /digests.operator/],
    [
      "a label that selectors go by",
      { extraLabels: { "app.kubernetes.io/name": "x" } },
      /kubernetes.io.name/,
    ],
    ["a port over 65535", { networkPolicy: { apiServerPorts: [70_000] } }, /apiServerPorts/],
    ["three replicas", { operator: { replicas: 3 } }, /operator\/replicas|operator\.replicas/],
    ["a number as text", { operator: { staleAfterSeconds: "180" } }, /staleAfterSeconds/],
    ["too short a time", { operator: { staleAfterSeconds: 5 } }, /staleAfterSeconds/],
    ["a log level that is none", { agent: { logLevel: "verbose" } }, /agent.logLevel/],
    ["an empty registry", { image: { registry: "" } }, /image.registry/],
    ["an endpoint of traces that is no URL", { tracing: { endpoint: "collector:4318" } }, /tracing.endpoint/],
    ["more than all traces", { tracing: { samplingRatio: 2 } }, /tracing.samplingRatio/],
    ["a configuration of the runtime that is text", { runtime: { config: "a: b" } }, /runtime.config/],
    ["a proxy that is no URL", { runtime: { proxy: { https: "proxy:3128" } } }, /proxy.https/],
    ["a URL for a registry", { artifacts: { registry: "https://mirror" } }, /artifacts.registry/],
    ["a pull policy that is none", { image: { pullPolicy: "Sometimes" } }, /image.pullPolicy/],
    ["a pull secret without a name", { image: { pullSecrets: [{}] } }, /image.pullSecrets.0/],
    [
      "a percentage over 100",
      { agent: { rollout: { maxUnavailable: "120%" } } },
      /agent.rollout.maxUnavailable/,
    ],
    ["a rollout without a deadline", { agent: { rollout: { deadlineSeconds: 0 } } }, /deadlineSeconds/],
    ["a rollout that never goes on", { agent: { rollout: { minReadySeconds: 1e6 } } }, /minReadySeconds/],
    [
      "a toleration of no effect that exists",
      { agent: { tolerations: [{ effect: "Never" }] } },
      /tolerations.0.effect/,
    ],
    [
      "a resource that is a list",
      { agent: { reporter: { resources: { limits: [] } } } },
      /reporter.resources.limits/,
    ],
    ["a switch as text", { uninstall: { enabled: "no" } }, /uninstall.enabled/],
    ["a timeout of a second", { uninstall: { timeoutSeconds: 1 } }, /uninstall.timeoutSeconds/],
    ["an interval without a unit", { metrics: { prometheusOperator: { interval: "30" } } }, /interval/],
    ["an annotation switch as number", { metrics: { scrapeAnnotations: 1 } }, /metrics.scrapeAnnotations/],
  ];
  test.each(refused)("%s", async (_title, values, names) => {
    const { code, stderr } = await template(values);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(names);
  });
});
