import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventsOf } from "../agent/agent.ts";
import { installChart, profileReady } from "../cluster/bulkhead.ts";
import { pushImages } from "../cluster/push-images.ts";
import { podOf, ready } from "../pods/kube.ts";
import { eventually, type Life, type NodeProfile, openLife, profileOf } from "./life.ts";

/** `rollout.drain` with the controllers and the kubelet of a real cluster: who holds a pod, and who waits for whom. */

let life: Life;

const profile = (rollout: object) =>
  life.apply(
    profileOf("drained", { runc: {} }, { rollout: { canaryNodes: 0, maxUnavailable: 1, ...rollout } }),
  );
const revision = async () => ((await life.nodeProfile("drained")) as NodeProfile).revision;
const budget = (minAvailable: number) =>
  life.ns.apply({
    apiVersion: "policy/v1",
    kind: "PodDisruptionBudget",
    metadata: { name: "held" },
    spec: { minAvailable, selector: { matchLabels: { app: "held" } } },
  });
/** The disruption controller has counted, for the budget as it is now. */
const allowed = (wanted: number) =>
  eventually(async () => {
    const { metadata, status } = JSON.parse(await life.ns.kubectl(["get", "pdb", "held", "-o", "json"]));
    expect(status).toMatchObject({ observedGeneration: metadata.generation, disruptionsAllowed: wanted });
  }, 30);
type Held = { metadata: { name: string; uid: string; deletionTimestamp?: string } } & Parameters<
  typeof ready
>[0];
const held = async (): Promise<Held[]> =>
  (JSON.parse(await life.ns.kubectl(["get", "pods", "-l", "app=held", "-o", "json"])) as { items: Held[] })
    .items;
const uids = async () => (await held()).map(({ metadata }) => metadata.uid).sort();
const bothReady = () =>
  eventually(async () => {
    const pods = await held();
    expect(pods.filter((pod) => ready(pod) && !pod.metadata.deletionTimestamp)).toHaveLength(2);
    expect(pods).toHaveLength(2);
  }, 60);
type Node = { metadata: { labels: Record<string, string> }; spec: { unschedulable?: boolean } };
const node = () => life.get<Node>("node", life.node.name);

beforeAll(async () => {
  life = await openLife("drain");
  await life.install();
  await installChart(life.cluster, await pushImages(life.cluster.registry), undefined, [
    "operator.mayEvict=true",
  ]);
  await profile({ drain: { deadline: "60s" } });
  await profileReady(life.cluster, "drained", undefined, 60);
  const { spec } = podOf("held", "drained", life.image) as { spec: object } & ReturnType<typeof podOf>;
  const labels = { app: "held" };
  await life.ns.apply({
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "held" },
    spec: {
      replicas: 2,
      selector: { matchLabels: labels },
      template: { metadata: { labels }, spec: { ...spec, restartPolicy: "Always" } },
    },
  });
  await budget(2);
  await bothReady();
  await allowed(0);
});
afterAll(async () => {
  if (life === undefined) return;
  await life.ns.kubectl(["delete", "deployment", "held", "--ignore-not-found"]);
  await life[Symbol.asyncDispose]();
  await life.cluster.kubectl(["delete", "rtp", "drained", "--timeout=60s"]);
});

test("A drain waits for the budget, then for the pods, and the node serves the next revision to those that come", async () => {
  const [before, former] = [await uids(), await revision()];
  await profile({ drain: { deadline: "60s" }, restartedAt: "2026-01-01T00:00:00Z" });
  await eventually(async () => {
    expect((await life.condition("drained", "Ready"))?.message).toContain(life.node.name);
    expect((await node()).metadata.labels).not.toHaveProperty("handler.bulkhead.dev/drained");
  });
  // Both are asked every two seconds, and stay.
  await sleep(5_000);
  expect(await uids()).toEqual(before);
  expect(await revision()).toBe(former);
  expect((await node()).spec.unschedulable).toBeUndefined();
  const events = await eventsOf(life.cluster, life.node.name);
  expect(events.filter(({ reason }) => reason === "EvictionRefused")).toEqual([]);

  await budget(0);
  await profileReady(life.cluster, "drained", undefined, 60);
  expect(await revision()).not.toBe(former);
  await bothReady();
  const after = await uids();
  expect(after.filter((uid) => before.includes(uid))).toEqual([]);
  expect((await node()).metadata.labels["handler.bulkhead.dev/drained"]).toBe("ready");
});

test("At the deadline what its budget holds stays, on the former revision, and an Event names it", async () => {
  await budget(2);
  await allowed(0);
  const [before, lives, former] = [await uids(), await life.lives(), await revision()];
  const started = Date.now() - 1000;
  await profile({ drain: { deadline: "5s" }, restartedAt: "2026-01-02T00:00:00Z" });
  await eventually(async () => expect(await revision()).not.toBe(former), 60);
  await profileReady(life.cluster, "drained", undefined, 60);
  expect(await uids()).toEqual(before);
  expect(await life.lives()).toEqual(lives);
  const [told] = await eventually(async () => {
    const events = await eventsOf(life.cluster, life.node.name);
    const found = events.filter(({ reason, at }) => reason === "DrainDeadline" && at >= started);
    expect(found).toHaveLength(1);
    return found;
  });
  expect(told?.note).toMatch(
    /^drained: 2 pods stay on the former revision: drain\/held-\S+, drain\/held-\S+$/,
  );
});
