import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { agentOn, execIn, kubectlAs } from "../agent/agent.ts";
import { bulkheadCluster } from "../cluster/bulkhead.ts";
import { type Cluster, until } from "../cluster/cluster.ts";
import { inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { dashboards, filled, rules } from "./panels.ts";
import { type Prometheus, startPrometheus } from "./prometheus.ts";

/** A real Prometheus scrapes the live cluster: what the dashboards and alerts ask of it is there. */

let cluster: Cluster;
let prometheus: Prometheus;
let ns: Namespace;

beforeAll(async () => {
  cluster = await bulkheadCluster();
  prometheus = await startPrometheus(cluster);
  ns = inNamespace(cluster, "observed");
  await ns.create();
  const image = `${cluster.registry}/bulkhead/test:1`;
  const start = (name: string, profile: string) =>
    // A pull each, also of an image that other tests have pulled.
    ns.run(podOf(name, profile, image, { imagePullPolicy: "Always" }, { nodeName: cluster.nodes[0]!.name }));
  // A rate wants a count that grew while somebody looked: one pod before the first scrape is not enough.
  await until(AbortSignal.timeout(60_000), 60_000, "the first scrapes", async () => {
    const up = await prometheus.query('up{job="bulkhead"} == 1');
    return up.length >= 3;
  });
  await Promise.all(["standard", "sandboxed"].map((profile) => start(profile, profile)));
  await refusedOnce();
  await sleep(6_000);
});
/** The API server counts what a policy refuses, and nothing before: an agent tries to write for another node. */
const refusedOnce = async (): Promise<void> => {
  const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token";
  const agent = await agentOn(cluster, cluster.node("node-1"));
  const token = await execIn(cluster, agent, "reporter", "/bin/busybox", "cat", tokenFile);
  const theft = {
    apiVersion: "bulkhead.dev/v1alpha1",
    kind: "NodeRuntime",
    metadata: { name: "node-2" },
    status: { kernel: "made up" },
  };
  const flags = ["--server-side", "--force-conflicts", "--field-manager=test", "--subresource=status"];
  const { stderr } = await kubectlAs(cluster, token, ["apply", ...flags, "-f", "-"], JSON.stringify(theft));
  expect(stderr).toContain("may not write the NodeRuntime");
};

afterAll(async () => {
  await ns?.destroy();
  await prometheus?.[Symbol.asyncDispose]();
});

test("the chart's annotations lead it to the operator and to every node's agent, and all answer", async () => {
  const { activeTargets } = await prometheus.get<{
    activeTargets: { labels: { job: string; instance: string }; health: string; lastError: string }[];
  }>("/api/v1/targets?state=active");
  const ours = activeTargets.filter(({ labels }) => labels.job === "bulkhead");
  expect(ours.length).toBe(1 + cluster.nodes.length);
  for (const { labels, health, lastError } of ours)
    expect(`${health} ${lastError}`, labels.instance).toBe("up ");
});

test("it takes every rule of the chart, and none of them fires", async () => {
  const { groups } = await prometheus.get<{
    groups: { rules: { name: string; health: string; lastError?: string }[] }[];
  }>("/api/v1/rules");
  const taken = groups.flatMap((group) => group.rules);
  expect(taken.map(({ name }) => name).sort()).toEqual(
    (await rules()).map(({ record, alert }) => record ?? alert).sort(),
  );
  for (const { name, health, lastError } of taken) expect(`${health} ${lastError ?? ""}`, name).toBe("ok ");
  expect(await prometheus.query('ALERTS{alertstate="firing"}')).toEqual([]);
});

describe("Every expression of every panel returns data:", async () => {
  for (const { title, panels } of await dashboards())
    test.each(
      panels.flatMap((panel) =>
        (panel.targets ?? []).map(({ expr }) => [panel.title, filled(expr)] as const),
      ),
    )(`${title}, %s`, async (_panel, expr) => {
      // A quotient of nothing is a sample, too, and no data. Canaries run once a minute: until one ran since the first
      // scrape, their rates are 0.
      await until(AbortSignal.timeout(90_000), 90_000, `data for ${expr}`, async () =>
        (await prometheus.query(expr)).some(({ value }) => Number.isFinite(Number(value[1]))),
      );
    });
});

test("what a variable of a dashboard offers is there", async () => {
  for (const { templating } of await dashboards())
    for (const { definition } of templating.list) {
      const [, metric, label = ""] = /^label_values\((\w+), (\w+)\)$/.exec(definition ?? "") ?? [];
      if (metric === undefined) continue;
      const values = new Set((await prometheus.query(metric)).map((sample) => sample.metric[label]));
      expect(values.size, definition).toBeGreaterThan(0);
      expect(values, definition).not.toContain(undefined);
    }
});
