import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import { type Cluster, until } from "../cluster/cluster.ts";
import { inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { agentOn, podsOf, type Sample, scrape } from "./agent.ts";

/** What a Prometheus gets of the live cluster, and that docs/metrics.md names all of it. */

type Scraped = Awaited<ReturnType<typeof scrape>>;

let cluster: Cluster;
let agent: Scraped;
let operator: Scraped;
let ns: Namespace;
const node = "node-1";
const profiles = ["standard", "sandboxed"];

beforeAll(async () => {
  cluster = await bulkheadCluster();
  ns = inNamespace(cluster, "metrics");
  await ns.create();
  const image = `${cluster.registry}/bulkhead/test:1`;
  await Promise.all(profiles.map((name) => ns.run(podOf(name, name, image, {}, { nodeName: node }))));
  const pod = await agentOn(cluster, cluster.node(node));
  // The kubelet says Running a moment before the runtime's next list; both are read when they agree.
  await until(AbortSignal.timeout(20_000), 20_000, "the runtime to count both pods", async () => {
    agent = await scrape(cluster, pod, 9473);
    return (
      agent.samples.filter(
        ({ name, labels }) => name === "bulkhead_runtime_pods" && labels.namespace === "metrics",
      ).length === 2
    );
  });
  await until(AbortSignal.timeout(20_000), 20_000, "the operator to count both pods", async () => {
    operator = await scrape(cluster, (await podsOf(cluster, "operator"))[0]!, 8080);
    return profiles.every((profile) => (value(operator, "bulkhead_profile_pods", { profile }) ?? 0) >= 1);
  });
});
afterAll(() => ns?.destroy());

const find = ({ samples }: Scraped, name: string, labels: Record<string, string> = {}): Sample[] =>
  samples.filter(
    (sample) =>
      sample.name === name && Object.entries(labels).every(([key, wanted]) => sample.labels[key] === wanted),
  );
const value = (scraped: Scraped, name: string, labels: Record<string, string> = {}): number | undefined => {
  const found = find(scraped, name, labels);
  return found.length === 0 ? undefined : found.reduce((sum, sample) => sum + sample.value, 0);
};

describe("The agent's /metrics, of reporter, installer and runtime together, say", () => {
  test.each(profiles)("that the handler of %s is ready on this node", (profile) => {
    expect(value(agent, "bulkhead_handler_ready", { profile, node })).toBe(1);
  });

  test.each(profiles)("how many canaries of %s passed and failed, and how long they took", (profile) => {
    const passed = value(agent, "bulkhead_canaries_total", { profile, node, result: "passed" }) ?? 0;
    expect(passed).toBeGreaterThanOrEqual(1);
    expect(value(agent, "bulkhead_canaries_total", { profile, node, result: "failed" })).toBe(0);
    expect(value(agent, "bulkhead_canary_start_seconds_count", { profile, node })).toBe(passed);
    const mean = (value(agent, "bulkhead_canary_start_seconds_sum", { profile, node }) ?? 0) / passed;
    expect(mean).toBeGreaterThan(0.01);
    expect(mean).toBeLessThan(30);
  });

  test.each(profiles)("how long each phase of a pod's start took under %s", (handler) => {
    for (const phase of ["namespaces", "network", "sandbox", "run", "create", "start"]) {
      const labels = { handler, phase };
      const count = value(agent, "bulkhead_runtime_pod_start_seconds_count", labels) ?? 0;
      // A canary and the pod of this test.
      expect(count, phase).toBeGreaterThanOrEqual(2);
      const mean = (value(agent, "bulkhead_runtime_pod_start_seconds_sum", labels) ?? 0) / count;
      expect(mean, phase).toBeGreaterThan(0);
      expect(mean, phase).toBeLessThan(30);
    }
  });

  test.each(profiles)("the pods of %s by namespace, canaries aside", (handler) => {
    expect(value(agent, "bulkhead_runtime_pods", { handler, namespace: "metrics" })).toBe(1);
    const namespaces = find(agent, "bulkhead_runtime_pods", { handler }).map(
      ({ labels }) => labels.namespace,
    );
    for (const name of namespaces) expect(name).toMatch(/^[a-z0-9-]+$/);
  });

  test("the CRI calls by method and code", () => {
    const calls = (method: string, code: string) =>
      value(agent, "bulkhead_runtime_cri_calls_total", { method, code }) ?? 0;
    for (const method of ["RunPodSandbox", "CreateContainer", "StartContainer"])
      expect(calls(method, "OK"), method).toBeGreaterThanOrEqual(4);
    expect(calls("ListPodSandbox", "OK")).toBeGreaterThan(10);
    const seconds = value(agent, "bulkhead_runtime_cri_call_seconds_count", { method: "RunPodSandbox" });
    expect(seconds).toBe(value(agent, "bulkhead_runtime_cri_calls_total", { method: "RunPodSandbox" }));
  });

  test("the requests to the API server", () => {
    expect(value(agent, "rest_client_requests_total", { code: "200" })).toBeGreaterThan(0);
  });
});

describe("The operator's /metrics say", () => {
  test.each(["runtimeprofile", "noderuntime"])("the reconciles and the queue of %s", (controller) => {
    expect(value(operator, "controller_runtime_reconcile_total", { controller })).toBeGreaterThan(0);
    const timed = value(operator, "controller_runtime_reconcile_time_seconds_count", { controller });
    expect(timed).toBe(value(operator, "controller_runtime_reconcile_total", { controller }));
    expect(value(operator, "controller_runtime_reconcile_errors_total", { controller })).toBe(
      value(operator, "controller_runtime_reconcile_total", { controller, result: "error" }),
    );
    const labels = { name: controller };
    expect(value(operator, "workqueue_depth", labels)).toBeGreaterThanOrEqual(0);
    expect(value(operator, "workqueue_adds_total", labels)).toBeGreaterThan(0);
    expect(value(operator, "workqueue_queue_duration_seconds_count", labels)).toBeGreaterThan(0);
    expect(value(operator, "workqueue_work_duration_seconds_count", labels)).toBe(timed);
  });

  test.each(profiles)("that %s is ready, on how many nodes, with how many pods", (profile) => {
    expect(value(operator, "bulkhead_profile_ready", { profile })).toBe(1);
    expect(value(operator, "bulkhead_profile_nodes", { profile, state: "ready" })).toBe(2);
    expect(value(operator, "bulkhead_profile_nodes", { profile })).toBe(2);
    expect(value(operator, "bulkhead_profile_pods", { profile })).toBeGreaterThanOrEqual(1);
  });

  test("who leads", () => {
    expect(value(operator, "leader_election_master_status")).toBe(1);
  });
});

test("docs/metrics.md names every metric that is served, with its type and labels, and no other", async () => {
  const text = await readFile(join(import.meta.dirname, "../../docs/metrics.md"), "utf8");
  const rows = new Map(
    [...text.matchAll(/^\| `([a-z_]+)` \| (\w+) \| ([^|]*) \|/gm)].map(
      ([, name = "", type = "", labels = ""]) => [
        name,
        { type, labels: [...labels.matchAll(/`(\w+)`/g)].map(([, label]) => label).sort() },
      ],
    ),
  );
  const served = [agent, operator].flatMap(({ types, samples }) =>
    [...types]
      // What prom-client says of any Node.js process is documented once, by prefix.
      .filter(([name]) => !/^(bulkhead_(reporter|installer|runtime)_)?(process|nodejs)_/.test(name))
      .map(([name, type]) => {
        const own = samples.filter(
          (sample) => sample.name === name || (type === "histogram" && sample.name === `${name}_count`),
        );
        const labels = [...new Set(own.flatMap((sample) => Object.keys(sample.labels)))].sort();
        // What has not happened yet has no sample to show its labels.
        return [name, { type, labels: own.length > 0 ? labels : rows.get(name)?.labels }] as const;
      }),
  );
  expect(Object.fromEntries(rows)).toEqual(Object.fromEntries(served));
});
