import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fieldManager, finalizer, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Condition, RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import { events } from "@bulkhead/lib/kube/events.ts";
import { leases, microTime } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import {
  controllerRevisions,
  nodeRuntimes,
  nodes,
  pods,
  runtimeClasses,
  runtimeProfiles,
  taintedNodes,
} from "@bulkhead/lib/kube/resources.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { pathOf, startReceiver } from "@bulkhead/test/observability/otlp.ts";
import { eventually, startOperator as launchOperator, type Operator } from "@bulkhead/test/operator/start.ts";
import { dump, load, loadAll } from "js-yaml";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

/**
 * The operator as a process on a real API server. Nodes are objects; the test stands in for their agents, which are
 * another program: it writes NodeRuntime.status as they do.
 */

const namespace = "default";
const fullNodes: Resource<KubeObject> = { ...nodes, metadataOnly: false };

let server: ApiServer;
let client: Client;

beforeAll(async () => {
  server = await startApiServer();
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
  await installCrds(client);
});
afterAll(async () => {
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});

const startOperator = (...flags: string[]): Promise<Operator> =>
  launchOperator(server.kubeconfig, namespace, ...flags);

const profile = (name: string) => client.get(runtimeProfiles, name);
const runtimeOf = (node: string) => client.get(nodeRuntimes, node);
const conditionOf = (is: RuntimeProfile | undefined, type: string): Condition | undefined =>
  is?.status?.conditions?.find((condition) => condition.type === type);
const hasCondition = (type: string, status: string, reason?: string) => (is: RuntimeProfile | undefined) => {
  const condition = conditionOf(is, type);
  return condition?.status === status && (reason === undefined || condition.reason === reason);
};

const createProfile = (name: string, spec: object = {}) =>
  client.create(runtimeProfiles, {
    metadata: { name },
    spec: { handler: { gvisor: { platform: "systrap" } }, ...spec },
  } as never);

const createNode = (name: string, more: Record<string, string> = {}) =>
  client.create(fullNodes, {
    metadata: { name, labels: { "kubernetes.io/os": "linux", "kubernetes.io/hostname": name, ...more } },
  });

const createPod = (name: string, runtimeClassName: string) =>
  client.create(pods, {
    metadata: { name, namespace },
    spec: { runtimeClassName, containers: [{ name: "c", image: "example/none:1" }] },
  } as never);

const removePod = (name: string) =>
  client.patch(pods, name, { status: { phase: "Succeeded" } }, { namespace, subresource: "status" });

/** What an agent does once: reports on each profile that its NodeRuntime.spec names. */
const report = async (
  node: string,
  say: (entry: NodeRuntime["spec"]["profiles"][number]) => Partial<ProfileStatus> = () => ({}),
  heartbeat = new Date(),
) => {
  const runtime = await runtimeOf(node);
  await client.applyStatus(
    nodeRuntimes,
    {
      metadata: { name: node },
      status: {
        observedGeneration: runtime.metadata.generation,
        heartbeat: heartbeat.toISOString(),
        profiles: runtime.spec.profiles.map((entry) => ({
          name: entry.name,
          phase: "Ready",
          revision: entry.revision,
          reason: "CanaryPassed",
          message: "",
          canary: {
            passed: true,
            at: heartbeat.toISOString(),
            startSeconds: 0.2,
            kernel: "4.4.0",
            assertions: ["kernel-differs"],
            failures: 0,
          },
          startSeconds: { p50: 0.2, p99: 0.4 },
          ...say(entry),
        })),
      },
    },
    { fieldManager: "bulkhead-agent", force: true },
  );
};

/** An agent that reports again and again until the test ends. */
const agents: AbortController[] = [];
const startAgent = (node: string, say?: Parameters<typeof report>[1]) => {
  const stop = new AbortController();
  agents.push(stop);
  void (async () => {
    while (!stop.signal.aborted) {
      await report(node, say).catch(() => {}); // not there yet
      await sleep(100);
    }
  })();
  return () => stop.abort();
};

const clean = async () => {
  for (const stop of agents.splice(0)) stop.abort();
  await sleep(150);
  for (const { metadata } of (await client.list(pods, { namespace })).items) {
    await client.delete(pods, metadata.name, { namespace });
  }
  for (const { metadata } of (await client.list(runtimeProfiles)).items) {
    await client.patch(runtimeProfiles, metadata.name, { metadata: { finalizers: null } });
    await client.delete(runtimeProfiles, metadata.name).catch(() => {});
  }
  for (const resource of [nodeRuntimes, runtimeClasses, fullNodes] as Resource<KubeObject>[]) {
    for (const { metadata } of (await client.list(resource)).items) {
      await client.delete(resource, metadata.name).catch(() => {});
    }
  }
};

describe("The operator", () => {
  let operator: Operator;
  /** Its metrics. */
  const served = async () => (await fetch(`http://${operator.address}/metrics`)).text();
  beforeEach(async () => {
    operator = await startOperator("--no-leader-elect", "--stale-after", "6");
  });
  afterEach(async () => {
    await operator.kill("SIGKILL");
    await clean();
  });

  test("takes a profile from apply to Ready: class, NodeRuntimes in waves, labels, status, events, metrics", async () => {
    await createNode("node-a", { wall: "yes" });
    await createNode("node-b", { wall: "yes" });
    await createNode("node-c");
    await createProfile("sandboxed", {
      nodeSelector: { wall: "yes" },
      tolerations: [{ key: "dedicated", operator: "Exists" }],
      runtimeClass: { overhead: { memory: "1024Mi", cpu: "0.25" } },
    });

    const runtimeClass = await eventually(
      "the class",
      () => client.get(runtimeClasses, "sandboxed"),
      Boolean,
    );
    expect(runtimeClass).toMatchObject({
      handler: "sandboxed",
      overhead: { podFixed: { memory: "1Gi", cpu: "250m" } },
      scheduling: {
        nodeSelector: { wall: "yes", "handler.bulkhead.dev/sandboxed": "ready" },
        tolerations: [{ key: "dedicated", operator: "Exists" }],
      },
      metadata: { labels: { "bulkhead.dev/profile": "sandboxed" } },
    });
    expect((await profile("sandboxed")).metadata.finalizers).toEqual([finalizer]);

    // The canary goes first; the other node has a NodeRuntime, and waits.
    const canary = await eventually(
      "the canary's NodeRuntime",
      () => runtimeOf("node-a"),
      (runtime) => runtime?.spec.profiles.length === 1,
    );
    const node = await client.get(nodes, "node-a");
    expect(canary.metadata.ownerReferences).toEqual([
      { apiVersion: "v1", kind: "Node", name: "node-a", uid: node.metadata.uid },
    ]);
    expect(canary.spec.profiles[0]).toMatchObject({
      name: "sandboxed",
      engine: "bulkhead",
      handler: { gvisor: { platform: "systrap" } },
      artifact: { bundled: true },
      probe: { interval: "60s", assertIsolation: true },
    });
    await eventually(
      "the canary's condition",
      () => profile("sandboxed"),
      hasCondition("Progressing", "True", "Canary"),
    );
    expect((await runtimeOf("node-b")).spec.profiles).toEqual([]);
    await expect(runtimeOf("node-c")).rejects.toMatchObject({ code: "not-found" });

    startAgent("node-a");
    startAgent("node-b");
    const ready = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const { revision } = canary.spec.profiles[0]!;
    expect(ready.status).toMatchObject({
      observedGeneration: 1,
      nodes: { desired: 2, updated: 2, ready: 2, failed: 0 },
      currentRevision: revision,
      updateRevision: revision,
      pods: 0,
      startSeconds: { p50: 0.2, p99: 0.4 },
    });
    expect(ready.status?.conditions?.map((c) => `${c.type}=${c.status} ${c.reason}`)).toEqual([
      "Accepted=True Accepted",
      "RuntimeClassReady=True RuntimeClassReady",
      "Progressing=False RolledOut",
      "Ready=True AllNodesReady",
      "Degraded=False AsExpected",
    ]);
    for (const name of ["node-a", "node-b"]) {
      await eventually(
        `the label of ${name}`,
        () => client.get(nodes, name),
        (is) => is?.metadata.labels?.[labels.handlerReady("sandboxed")] === "ready",
      );
    }
    const told = await eventually(
      "events",
      () => client.list(events, { namespace }),
      (list) => list?.items.some((e) => e.reason === "AllNodesReady") ?? false,
    );
    const reasons = told.items.filter((e) => e.regarding?.name === "sandboxed").map((e) => e.reason);
    expect(reasons).toContain("RuntimeClassCreated");
    expect(reasons).toContain("Canary");
    expect(new Set(reasons).size).toBe(reasons.length);

    const metrics = await served();
    expect(metrics).toContain('bulkhead_profile_ready{profile="sandboxed"} 1');
    expect(metrics).toContain('bulkhead_profile_nodes{profile="sandboxed",state="ready"} 2');
    // Of the reasons that it had before none is left.
    expect(metrics.match(/^bulkhead_profile_progressing\{.*/gm)).toEqual([
      'bulkhead_profile_progressing{profile="sandboxed",reason="RolledOut"} 1',
    ]);
    expect(metrics).toMatch(
      /controller_runtime_reconcile_total\{controller="runtimeprofile",result="requeue_after"\} [1-9]/,
    );
    expect(metrics).toMatch(/workqueue_depth\{name="noderuntime",controller="noderuntime"\} 0/);
    expect((await fetch(`http://${operator.address}/readyz`)).status).toBe(200);
    expect((await fetch(`http://${operator.address}/healthz`)).status).toBe(200);

    // Nothing changes but heartbeats: nothing is written, not even by a reconcile.
    const writes = async () =>
      [
        ...(await served()).matchAll(
          /rest_client_requests_total\{method="(POST|PUT|PATCH|DELETE)",code="\d+"\} (\d+)/g,
        ),
      ].reduce((sum, [, , count]) => sum + Number(count), 0);
    await sleep(1_000);
    const before = await writes();
    await sleep(4_000);
    expect(await writes()).toBe(before);
  });

  test("repairs what others change of its RuntimeClass, NodeRuntimes and labels", async () => {
    await createNode("node-a");
    await createProfile("sandboxed");
    startAgent("node-a");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const good = await client.get(runtimeClasses, "sandboxed");

    await client.patch(runtimeClasses, "sandboxed", {
      metadata: { labels: { team: "a" } },
      scheduling: { nodeSelector: null, tolerations: [{ operator: "Exists" }] },
      overhead: { podFixed: { memory: "1Mi" } },
    });
    const mended = await eventually(
      "the class mended",
      () => client.get(runtimeClasses, "sandboxed"),
      (is) => is?.overhead === undefined,
    );
    expect(mended.scheduling).toEqual(good.scheduling);
    expect(mended.metadata.labels).toEqual({ ...good.metadata.labels, team: "a" });

    await client.delete(runtimeClasses, "sandboxed");
    await eventually("the class made anew", () => client.get(runtimeClasses, "sandboxed"), Boolean);

    await client.delete(runtimeClasses, "sandboxed");
    const { metadata, ...rest } = good;
    await client
      .create(runtimeClasses, {
        ...rest,
        metadata: { name: "sandboxed", labels: metadata.labels ?? {} },
        handler: "runc",
      })
      .catch(() => {}); // the operator may have been faster
    await eventually(
      "the class with its own handler",
      () => client.get(runtimeClasses, "sandboxed"),
      (is) => is?.handler === "sandboxed",
    );

    const spec = (await runtimeOf("node-a")).spec.profiles;
    await client.patch(nodeRuntimes, "node-a", {
      spec: { profiles: [{ ...spec[0], name: "intruder" }] },
    });
    await eventually(
      "the NodeRuntime mended",
      () => runtimeOf("node-a"),
      (is) => JSON.stringify(is?.spec.profiles.map((p) => p.name)) === '["sandboxed"]',
    );
    await client.delete(nodeRuntimes, "node-a");
    await eventually(
      "the NodeRuntime made anew",
      () => runtimeOf("node-a"),
      (is) => is?.spec.profiles.length === 1,
    );

    await eventually(
      "the label",
      () => client.get(nodes, "node-a"),
      (is) => Boolean(is?.metadata.labels?.[labels.handlerReady("sandboxed")]),
    );
    await client.patch(nodes, "node-a", {
      metadata: {
        labels: { [labels.handlerReady("sandboxed")]: null, [labels.handlerReady("none")]: "ready" },
      },
    });
    await eventually(
      "the labels mended",
      () => client.get(nodes, "node-a"),
      (is) =>
        is?.metadata.labels?.[labels.handlerReady("sandboxed")] === "ready" &&
        !(labels.handlerReady("none") in (is?.metadata.labels ?? {})),
    );
  });

  test("leaves a foreign RuntimeClass as it is, says so, and takes the name once it is free", async () => {
    await createNode("node-a");
    const foreign = await client.create(runtimeClasses, { metadata: { name: "taken" }, handler: "theirs" });
    await createPod("not-ours", "taken");
    await createProfile("taken");
    const is = await eventually("the condition", () => profile("taken"), hasCondition("Degraded", "True"));
    expect(conditionOf(is, "RuntimeClassReady")).toMatchObject({
      status: "False",
      reason: "ForeignRuntimeClass",
    });
    expect(conditionOf(is, "RuntimeClassReady")?.message).toContain('RuntimeClass "taken" exists');
    expect(is.status?.pods).toBe(0);
    await sleep(1_000);
    expect(await client.get(runtimeClasses, "taken")).toEqual(foreign);
    await expect(runtimeOf("node-a")).resolves.toMatchObject({ spec: { profiles: [] } });

    // A second profile cannot take over the first one's class either.
    await createProfile("first", { runtimeClass: { name: "shared" } });
    await eventually("first's class", () => client.get(runtimeClasses, "shared"), Boolean);
    await createProfile("second", { runtimeClass: { name: "shared" } });
    const second = await eventually(
      "second",
      () => profile("second"),
      hasCondition("RuntimeClassReady", "False"),
    );
    expect(conditionOf(second, "RuntimeClassReady")?.message).toContain('belongs to RuntimeProfile "first"');

    await client.delete(runtimeClasses, "taken");
    await eventually("the class", () => profile("taken"), hasCondition("RuntimeClassReady", "True"));
    expect((await client.get(runtimeClasses, "taken")).handler).toBe("taken");
  });

  test("deletes a profile whose class was foreign without waiting for pods that are not its own", async () => {
    await client.create(runtimeClasses, { metadata: { name: "taken" }, handler: "theirs" });
    await createPod("not-ours", "taken");
    await createProfile("taken");
    await eventually("the condition", () => profile("taken"), hasCondition("Degraded", "True"));
    await client.delete(runtimeProfiles, "taken");
    await eventually(
      "gone",
      () => profile("taken"),
      (is) => is === undefined,
    );
    expect((await client.get(runtimeClasses, "taken")).handler).toBe("theirs");
  });

  test("keeps a profile in use, says for which pods, then takes everything back in order", async () => {
    await createNode("node-a");
    await createNode("node-b");
    await createProfile("sandboxed");
    const stopA = startAgent("node-a");
    startAgent("node-b");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    for (let pod = 0; pod < 12; pod++) await createPod(`user-${String(pod).padStart(2, "0")}`, "sandboxed");
    await eventually(
      "pods counted",
      () => profile("sandboxed"),
      (is) => is?.status?.pods === 12,
    );

    await client.delete(runtimeProfiles, "sandboxed");
    const waiting = await eventually(
      "in use",
      () => profile("sandboxed"),
      hasCondition("Progressing", "True", "InUse"),
    );
    expect(conditionOf(waiting, "Progressing")?.message).toBe(
      `12 pods use RuntimeClass "sandboxed": ${Array.from({ length: 10 }, (_, n) => `default/user-0${n}`).join(", ")} and 2 more`,
    );
    const told = await eventually(
      "told", // the Event follows the status
      async () => (await client.list(events, { namespace })).items.find((e) => e.reason === "InUse"),
      (is) => is !== undefined,
    );
    expect(told).toMatchObject({ type: "Warning", regarding: { kind: "RuntimeProfile", name: "sandboxed" } });
    await sleep(1_000);
    expect((await runtimeOf("node-a")).spec.profiles).toHaveLength(1);
    await client.get(runtimeClasses, "sandboxed");

    stopA(); // node-a's agent does not answer while the profile is being removed
    await sleep(200);
    for (let pod = 0; pod < 12; pod++) await removePod(`user-${String(pod).padStart(2, "0")}`);
    const removing = await eventually(
      "removing",
      () => profile("sandboxed"),
      (is) => conditionOf(is, "Progressing")?.message === "waiting for the agents of node-a",
    );
    expect(conditionOf(removing, "Progressing")?.reason).toBe("RemovingFromNodes");
    await expect(client.get(runtimeClasses, "sandboxed")).rejects.toMatchObject({ code: "not-found" });
    expect((await runtimeOf("node-a")).spec.profiles).toEqual([]);
    await sleep(500);
    expect((await profile("sandboxed")).metadata.finalizers).toEqual([finalizer]);

    await report("node-a");
    await eventually(
      "gone",
      () => profile("sandboxed"),
      (is) => is === undefined,
    );
    for (const name of ["node-a", "node-b"]) {
      await eventually(
        "no label",
        () => client.get(nodes, name),
        (is) => !(labels.handlerReady("sandboxed") in (is?.metadata.labels ?? {})),
      );
    }
    const metrics = await served();
    expect(metrics).not.toContain('profile="sandboxed"');
  });

  test("does not wait for nodes that vanished, and forgets them", async () => {
    await createNode("node-a");
    await createProfile("sandboxed");
    const stop = startAgent("node-a");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    stop();
    await client.delete(runtimeProfiles, "sandboxed");
    await eventually(
      "removing",
      () => profile("sandboxed"),
      hasCondition("Progressing", "True", "RemovingFromNodes"),
    );
    await client.delete(nodes, "node-a");
    await eventually(
      "gone",
      () => profile("sandboxed"),
      (is) => is === undefined,
    );
    await eventually(
      "the NodeRuntime gone",
      () => runtimeOf("node-a"),
      (is) => is === undefined,
    );
  });

  test("stops a rollout that fails, says on which nodes and why, and goes on when the profile is mended", async () => {
    for (const name of ["node-a", "node-b", "node-c", "node-d"]) await createNode(name);
    await createProfile("sandboxed");
    const broken = (entry: { handler: { gvisor?: { platform?: string } | undefined } }) =>
      entry.handler.gvisor?.platform === "kvm";
    for (const name of ["node-a", "node-b", "node-c", "node-d"]) {
      let served = "";
      startAgent(name, (entry) => {
        if (!broken(entry)) {
          served = entry.revision;
          return {};
        }
        return {
          phase: "RolledBack",
          revision: served,
          attemptedRevision: entry.revision,
          reason: "CanaryFailed",
          message: "no /dev/kvm",
        };
      });
    }
    const good = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    await client.patch(runtimeProfiles, "sandboxed", { spec: { handler: { gvisor: { platform: "kvm" } } } });
    const halted = await eventually(
      "halted",
      () => profile("sandboxed"),
      hasCondition("Progressing", "False", "FailureThreshold"),
    );
    expect(halted.status).toMatchObject({
      nodes: { desired: 4, ready: 4, updated: 0, failed: 2 },
      currentRevision: good.status?.updateRevision,
      failedNodes: [
        { name: "node-a", reason: "CanaryFailed", message: "no /dev/kvm" },
        { name: "node-b", reason: "CanaryFailed", message: "no /dev/kvm" },
      ],
    });
    expect(conditionOf(halted, "Degraded")).toMatchObject({ status: "True", reason: "FailureThreshold" });
    expect((await runtimeOf("node-d")).spec.profiles[0]?.revision).toBe(good.status?.updateRevision);
    const told = (await client.list(events, { namespace })).items.filter((e) => e.reason === "NodeFailed");
    expect(told.map((e) => e.note)).toContain("node node-a: CanaryFailed: no /dev/kvm");

    await client.patch(runtimeProfiles, "sandboxed", {
      spec: { handler: { gvisor: { platform: "ptrace" } } },
    });
    const mended = await eventually(
      "Ready",
      () => profile("sandboxed"),
      (is) => hasCondition("Ready", "True")(is) && is?.status?.updateRevision !== good.status?.updateRevision,
    );
    expect(mended.status).toMatchObject({ nodes: { desired: 4, updated: 4, ready: 4, failed: 0 } });
    expect(mended.status?.failedNodes).toBeUndefined();
  });

  test("waits until nodes have been ready for minReadySeconds, and gives no other a revision that fails meanwhile", async () => {
    const names = ["node-a", "node-b"];
    /** When each node got each handler, and when its agent has it fail. */
    const got: Record<string, number> = {};
    const fails = { kvm: false };
    for (const name of names) {
      await createNode(name);
      let served = "";
      startAgent(name, (entry) => {
        const platform = entry.handler.gvisor?.platform ?? "";
        got[`${name} ${platform}`] ??= Date.now();
        if (platform !== "kvm" || !fails.kvm) {
          served = platform === "kvm" ? served : entry.revision;
          return {};
        }
        const attempted = {
          attemptedRevision: entry.revision,
          reason: "CanaryFailed",
          message: "no /dev/kvm",
        };
        return { phase: "RolledBack", revision: served, ...attempted };
      });
    }
    await createProfile("sandboxed", { rollout: { minReadySeconds: 2, failureThreshold: 1 } });
    const canary = await eventually(
      "a canary that is ready",
      () => profile("sandboxed"),
      (is) => conditionOf(is, "Progressing")?.message.includes("ready for less than") ?? false,
    );
    expect(conditionOf(canary, "Progressing")).toMatchObject({
      reason: "Canary",
      message: expect.stringContaining("is tried on node-a, 1 ready for less than 2 s"),
    });
    const ready = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    expect(got["node-b systrap"]! - got["node-a systrap"]!).toBeGreaterThanOrEqual(2_000);
    expect(conditionOf(ready, "Progressing")).toMatchObject({
      ...{ status: "True", reason: "RollingOut" },
      message: expect.stringContaining("2 of 2 nodes ready, 1 ready for less than 2 s"),
    });
    expect(ready.status).not.toHaveProperty("currentRevision");
    const done = await eventually(
      "rolled out",
      () => profile("sandboxed"),
      hasCondition("Progressing", "False", "RolledOut"),
    );
    expect(done.status?.currentRevision).toBe(done.status?.updateRevision);

    await client.patch(runtimeProfiles, "sandboxed", { spec: { handler: { gvisor: { platform: "kvm" } } } });
    await eventually(
      "the canary's next revision",
      () => profile("sandboxed"),
      (is) =>
        is?.metadata.generation === is?.status?.observedGeneration &&
        (conditionOf(is, "Progressing")?.message.includes("ready for less than") ?? false),
    );
    fails.kvm = true;
    await eventually(
      "halted",
      () => profile("sandboxed"),
      hasCondition("Progressing", "False", "FailureThreshold"),
    );
    await sleep(2_500);
    expect(got).not.toHaveProperty("node-b kvm");
  });

  test("goes on with a soak that an operator before it began, by what the agents say", async () => {
    await createNode("node-a");
    const longAgo = new Date(Date.now() - 7_200_000).toISOString();
    startAgent("node-a", () => ({ readySince: longAgo }));
    await createProfile("sandboxed", { rollout: { minReadySeconds: 3600 } });
    // What it sees begin, it measures itself.
    await eventually(
      "a node that is ready",
      () => profile("sandboxed"),
      (is) => conditionOf(is, "Progressing")?.message.includes("1 ready for less than 3600 s") ?? false,
    );
    await eventually("the metrics of a soak", served, (text) =>
      [
        '_nodes_soaking{profile="sandboxed"} 1',
        '_progressing{profile="sandboxed",reason="RollingOut"} 1',
      ].every((line) => text?.includes(`bulkhead_profile${line}`)),
    );
    await operator.kill("SIGKILL");
    operator = await startOperator("--no-leader-elect", "--stale-after", "6");
    await eventually(
      "rolled out",
      () => profile("sandboxed"),
      hasCondition("Progressing", "False", "RolledOut"),
    );
  });

  test("keeps a profile's revisions, and takes every node back to the last good one when the policy says so", async () => {
    const names = ["node-a", "node-b", "node-c", "node-d"];
    for (const name of names) {
      await createNode(name);
      let served = "";
      startAgent(name, (entry) => {
        // The first canary gets it to run: it must go back, too.
        if (entry.handler.gvisor?.platform !== "kvm" || name === "node-a") {
          served = entry.revision;
          return {};
        }
        return {
          phase: "RolledBack",
          revision: served,
          attemptedRevision: entry.revision,
          reason: "CanaryFailed",
          message: "no /dev/kvm",
        };
      });
    }
    await createProfile("sandboxed", { rollout: { onFailure: "Rollback", maxUnavailable: 2 } });
    const good = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const first = good.status?.updateRevision;
    const revisions = async () =>
      (await client.list(controllerRevisions, { namespace, labelSelector: "bulkhead.dev/profile=sandboxed" }))
        .items;
    await client.patch(runtimeProfiles, "sandboxed", { spec: { handler: { gvisor: { platform: "kvm" } } } });
    const back = await eventually(
      "rolled back",
      () => profile("sandboxed"),
      (is) => hasCondition("Progressing", "False", "RolledBack")(is) && hasCondition("Ready", "True")(is),
    );
    expect(back.spec.handler.gvisor?.platform).toBe("kvm");
    expect(conditionOf(back, "Degraded")).toMatchObject({ status: "True", reason: "RolledBack" });
    expect(conditionOf(back, "Degraded")?.message).toContain("node-b: CanaryFailed, node-c: CanaryFailed");
    expect(back.status).toMatchObject({
      currentRevision: first,
      rolledBack: { revision: back.status?.updateRevision, to: first, generation: 2 },
    });
    for (const name of names) {
      expect((await runtimeOf(name)).spec.profiles[0]).toMatchObject({
        revision: first,
        handler: { gvisor: { platform: "systrap" } },
      });
    }
    const told = await eventually(
      "the Event",
      async () => (await client.list(events, { namespace })).items,
      (list) => list?.some((event) => event.reason === "RolledBack" && event.type === "Warning") ?? false,
    );
    expect(told.filter((event) => event.reason === "RolledBack").length).toBeLessThanOrEqual(2);

    // Another operator knows it, too, and does not try again.
    await operator.kill("SIGKILL");
    operator = await startOperator("--no-leader-elect", "--stale-after", "6");
    await sleep(2_000);
    expect((await runtimeOf("node-b")).spec.profiles[0]?.revision).toBe(first);

    // The spec goes back to what runs: all is well, and the history has it as its newest.
    await client.patch(runtimeProfiles, "sandboxed", {
      spec: { handler: { gvisor: { platform: "systrap" } } },
    });
    const well = await eventually(
      "well",
      () => profile("sandboxed"),
      (is) => hasCondition("Degraded", "False")(is) && is?.status?.updateRevision === first,
    );
    expect(well.status).not.toHaveProperty("rolledBack");
    const history = await eventually(
      "the history",
      revisions,
      (list) => list?.some((revision) => revision.revision === 3) ?? false,
    );
    expect(
      history
        .sort((one, other) => one.revision - other.revision)
        .map(({ revision, data }) => [revision, data.handler.gvisor?.platform]),
    ).toEqual([
      [2, "kvm"],
      [3, "systrap"],
    ]);

    await client.delete(runtimeProfiles, "sandboxed");
    await eventually(
      "gone",
      () => profile("sandboxed"),
      (is) => is === undefined,
    );
    expect(await revisions()).toEqual([]);
  });

  test("declares as overhead what the dearest canary took, raises it, and lets a cheaper revision lower it", async () => {
    await createNode("node-a");
    await createProfile("sandboxed", { runtimeClass: { overhead: { memory: "measured" } } });
    let mebibytes = 40;
    const measured = (overheadBytes: number): ProfileStatus["canary"] => ({
      ...{ passed: true, at: new Date().toISOString(), startSeconds: 0.2, kernel: "4.4.0" },
      ...{ overheadBytes, assertions: [], failures: 0 },
    });
    startAgent("node-a", () => ({ canary: measured(mebibytes * 2 ** 20) }));
    const declares = (memory: string) =>
      eventually(
        `${memory} declared`,
        () => client.get(runtimeClasses, "sandboxed"),
        (is) => is?.overhead?.podFixed.memory === memory,
      );
    await declares("48Mi");
    const bytes = (kind: string, mebibytes: number) =>
      `bulkhead_profile_overhead_bytes{profile="sandboxed",kind="${kind}"} ${mebibytes * 2 ** 20}\n`;
    const both = [bytes("declared", 48), bytes("measured", 40)];
    await eventually("both as metrics", served, (text) => both.every((line) => text?.includes(line)));
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    mebibytes = 70;
    await declares("80Mi");
    mebibytes = 20;
    // As many plans as it takes until the lower figure is told.
    await eventually(
      "20Mi told",
      () => profile("sandboxed"),
      (is) => is?.status?.overheadMemory?.measured === "20Mi",
    );
    await declares("80Mi");
    await client.patch(runtimeProfiles, "sandboxed", {
      spec: { handler: { gvisor: { platform: "ptrace" } } },
    });
    await declares("32Mi");
  });

  test("declares the huge pages of a profile's machine, also without a word on other overhead, and pods have them", async () => {
    const kata = { shim: "go", hugepages: true, memory: "257Mi" };
    await createProfile("huge", { handler: { kata }, runtimeClass: { readiness: "none" } });
    const { overhead } = await eventually("the class", () => client.get(runtimeClasses, "huge"), Boolean);
    expect(overhead?.podFixed).toEqual({ memory: "0", "hugepages-2Mi": "258Mi" });
    await createPod("paged", "huge");
    expect(await client.get(pods, "paged", { namespace })).toMatchObject({
      spec: { overhead: { memory: "0", "hugepages-2Mi": "258Mi" } },
    });
    await client.patch(runtimeProfiles, "huge", { spec: { handler: { kata: { hugepageSize: "1Gi" } } } });
    await eventually(
      "pages of 1Gi",
      () => client.get(runtimeClasses, "huge"),
      (is) => is?.overhead?.podFixed["hugepages-1Gi"] === "1Gi",
    );
  });

  test("takes the startup taint off a node whose canary passed, however often the node comes anew", async () => {
    await createProfile("sandboxed", { runtimeClass: { readiness: "startupTaint" } });
    const { scheduling } = await eventually(
      "the class",
      () => client.get(runtimeClasses, "sandboxed"),
      Boolean,
    );
    // From zero: nothing that a node could not have from its beginning.
    expect(scheduling).toBeUndefined();
    const taints = [
      { key: "dedicated", value: "a", effect: "NoSchedule" },
      { key: "handler.bulkhead.dev/sandboxed", effect: "NoSchedule" },
      { key: "handler.bulkhead.dev/other", effect: "NoSchedule" },
    ];
    for (const round of [1, 2]) {
      await client.create(taintedNodes, {
        metadata: { name: "node-a", labels: { "kubernetes.io/os": "linux" } },
        spec: { taints },
      } as never);
      await eventually(
        "its NodeRuntime",
        () => runtimeOf("node-a"),
        (is) => is?.spec.profiles.length === 1,
      );
      await sleep(300);
      const keys = async () => (await client.get(taintedNodes, "node-a")).spec?.taints?.map(({ key }) => key);
      // The API server gives every new node one of its own.
      const others = ["dedicated", "handler.bulkhead.dev/other", "node.kubernetes.io/not-ready"];
      expect((await keys())?.sort()).toEqual([...others, "handler.bulkhead.dev/sandboxed"].sort());
      await report("node-a");
      await eventually(`the taint gone, round ${round}`, keys, (is) => is?.length === 3);
      expect((await keys())?.sort()).toEqual(others);
      await client.delete(nodes, "node-a");
      await eventually(
        "the NodeRuntime gone",
        () => runtimeOf("node-a"),
        (is) => is === undefined,
      );
    }
  });

  test("takes the label from a node whose canary fails or whose agent falls silent, and gives it back", async () => {
    await createNode("node-a");
    await createProfile("sandboxed");
    const labelled = (yes: boolean) =>
      eventually(
        `label ${yes}`,
        () => client.get(nodes, "node-a"),
        (is) => (is?.metadata.labels?.[labels.handlerReady("sandboxed")] === "ready") === yes,
      );
    const stopGood = startAgent("node-a");
    await labelled(true);
    stopGood();
    await sleep(200);
    await report("node-a", () => ({
      phase: "Failed",
      reason: "CanaryFailed",
      message: "the wall is not there",
    }));
    await labelled(false);
    const degraded = await eventually(
      "Degraded",
      () => profile("sandboxed"),
      hasCondition("Degraded", "True", "NodesFailed"),
    );
    expect(conditionOf(degraded, "Ready")?.message).toContain("node-a: CanaryFailed (the wall is not there)");
    await report("node-a");
    await labelled(true);
    await labelled(false); // six seconds without a word
    await eventually(
      "AgentSilent",
      () => profile("sandboxed"),
      hasCondition("Degraded", "True", "AgentsSilent"),
    );
    await report("node-a");
    await labelled(true);
    await eventually("Ready again", () => profile("sandboxed"), hasCondition("Ready", "True"));
  });

  test("hears an agent by the Lease that it is told of, as long as that is renewed", async () => {
    await createNode("node-a");
    await createProfile("sandboxed");
    const given = await eventually(
      "what the node shall have",
      () => runtimeOf("node-a"),
      (is) => is?.spec.profiles.length === 1,
    );
    const told = given.metadata.annotations?.[labels.leases];
    expect(told).toBe(namespace);
    const ready = async () =>
      (await client.get(nodes, "node-a")).metadata.labels?.[labels.handlerReady("sandboxed")] === "ready";
    await report("node-a");
    await client.create(leases, {
      metadata: { name: "node-a", namespace, labels: { [labels.managedBy]: fieldManager.agent } },
    });
    await eventually("the label", ready, (is) => is === true);
    // Longer than the report is believed.
    for (const until = Date.now() + 8000; Date.now() < until; await sleep(500)) {
      const spec = { renewTime: microTime(Date.now()) };
      await client.patch(leases, "node-a", { spec }, { namespace });
      expect(await ready()).toBe(true);
    }
    const seen = (await profile("sandboxed"))?.status;
    expect(seen?.nodes).toMatchObject({ ready: 1, failed: 0 });
    await eventually("no label: silence", ready, (is) => is === false);
    await client.delete(leases, "node-a", { namespace });
  });

  test("serves nodes that join, that match no more, and that come back under their name", async () => {
    await createNode("node-a", { wall: "yes" });
    await createProfile("sandboxed", { nodeSelector: { wall: "yes" } });
    startAgent("node-a");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    await createNode("node-b", { wall: "yes" });
    await eventually(
      "node-b",
      () => runtimeOf("node-b"),
      (is) => is?.spec.profiles.length === 1,
    );
    await client.patch(nodes, "node-b", { metadata: { labels: { wall: "no" } } });
    await eventually(
      "node-b without",
      () => runtimeOf("node-b"),
      (is) => is?.spec.profiles.length === 0,
    );

    await client.delete(nodes, "node-a");
    await eventually(
      "the NodeRuntime gone",
      () => runtimeOf("node-a"),
      (is) => is === undefined,
    );
    const again = await createNode("node-a", { wall: "yes" });
    const runtime = await eventually(
      "node-a again",
      () => runtimeOf("node-a"),
      (is) => is?.spec.profiles.length === 1,
    );
    expect(runtime.metadata.ownerReferences?.map((ref) => ref.uid)).toEqual([again.metadata.uid]);
  });

  test("goes through a wave in which nodes boot, come, go, and come back with a kernel that has no such wall", async () => {
    type Way = "serves" | "installs" | "booted" | "unsupported";
    const ways = new Map<string, Way>();
    const served = new Map<string, string>();
    const agentOf = (name: string) =>
      startAgent(name, ({ revision }) => {
        switch (ways.get(name) ?? "serves") {
          case "serves":
            served.set(name, revision);
            return {};
          case "installs":
            return {
              phase: served.get(name) === revision ? "Ready" : "Installing",
              revision: served.get(name) ?? "",
              attemptedRevision: revision,
            };
          case "booted":
            // As an agent says it whose record is of another boot.
            return { phase: "Verifying", revision: "", attemptedRevision: revision, canary: undefined };
          case "unsupported":
            return {
              phase: "Failed",
              revision: "",
              attemptedRevision: revision,
              reason: "NotSupported",
              message: "KVM boots no guest",
              canary: undefined,
            };
        }
      });
    const names = ["a", "b", "c", "d", "e", "f"].map((letter) => `node-${letter}`);
    for (const name of names) {
      await createNode(name);
      agentOf(name);
    }
    await createProfile("sandboxed", { rollout: { maxUnavailable: 1, failureThreshold: 2 } });
    const first = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const old = first.status?.updateRevision;
    // Somebody is at work on it: it gets the revision as any other, and stays cordoned.
    await client.patch(taintedNodes, "node-c", { spec: { unschedulable: true } });
    const cordoned = async () =>
      (await Promise.all(names.map((name) => client.get(taintedNodes, name).catch(() => undefined)))).flatMap(
        (node) => ((node?.spec as { unschedulable?: boolean })?.unschedulable ? [node?.metadata.name] : []),
      );

    for (const name of names.slice(1)) ways.set(name, "installs");
    const restartedAt = "2026-01-01T00:00:00.000Z";
    await client.patch(runtimeProfiles, "sandboxed", { spec: { rollout: { restartedAt } } });
    const has = async (name: string) => (await runtimeOf(name)).spec.profiles[0]?.revision;
    const given = (name: string) =>
      eventually(
        `the revision on ${name}`,
        () => has(name),
        (is) => is !== undefined && is !== old,
      );
    const labelled = (name: string, yes: boolean) =>
      eventually(
        `label of ${name}: ${yes}`,
        () => client.get(nodes, name),
        (is) => (is?.metadata.labels?.[labels.handlerReady("sandboxed")] === "ready") === yes,
      );

    await given("node-b");
    expect((await runtimeOf("node-a")).spec.profiles[0]).toMatchObject({
      revision: await has("node-b"),
      handler: first.spec.handler,
    });
    // Its own install is not done when it boots: no pods come to it, and no other node goes meanwhile.
    ways.set("node-b", "booted");
    await labelled("node-b", false);
    await createNode("node-g");
    agentOf("node-g");
    await given("node-g"); // it serves nothing yet: it need not wait
    await labelled("node-g", true);
    await sleep(1_000);
    expect(await has("node-c")).toBe(old);
    ways.set("node-b", "serves");
    await labelled("node-b", true);

    await given("node-c");
    expect(await has("node-d")).toBe(old);
    ways.set("node-c", "serves");
    await given("node-d");
    await client.delete(nodes, "node-d");
    await given("node-e");
    ways.set("node-e", "unsupported");
    await labelled("node-e", false);
    await given("node-f");
    ways.set("node-f", "serves");
    const failed = await eventually(
      "all but node-e",
      () => profile("sandboxed"),
      (is) => is?.status?.nodes?.ready === 5 && is.status.nodes.updated === 5,
    );
    expect(failed.status).toMatchObject({
      nodes: { desired: 6, failed: 1 },
      failedNodes: [{ name: "node-e", reason: "NotSupported", message: "KVM boots no guest" }],
      currentRevision: old,
    });
    ways.set("node-e", "serves");
    const done = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    expect(done.status?.currentRevision).toBe(done.status?.updateRevision);
    expect(await cordoned()).toEqual(["node-c"]);

    // The rollout is long over when a node boots: what it said before counts no more either.
    ways.set("node-a", "booted");
    await labelled("node-a", false);
    await eventually(
      "not Ready",
      () => profile("sandboxed"),
      hasCondition("Ready", "False", "NodesNotReady"),
    );
    ways.set("node-a", "serves");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
  });

  test("asks pods away before a node goes to another revision: within their budgets, until the deadline, and after a crash", async () => {
    const budgets: Resource<KubeObject> = {
      apiVersion: "policy/v1",
      kind: "PodDisruptionBudget",
      plural: "poddisruptionbudgets",
      namespaced: true,
    };
    // No controller of disruptions is here: the test says how many are allowed.
    const allow = (disruptionsAllowed: number) =>
      client.patch(
        budgets,
        "held",
        {
          status: {
            ...{ observedGeneration: 1, currentHealthy: 1, desiredHealthy: 1, expectedPods: 1 },
            disruptionsAllowed,
          },
        },
        { namespace, subresource: "status" },
      );
    const runPod = async (name: string, nodeName: string, more: object = {}) => {
      await client.create(pods, {
        metadata: { name, namespace, ...more },
        spec: {
          ...{ runtimeClassName: "sandboxed", nodeName, terminationGracePeriodSeconds: 0 },
          containers: [{ name: "c", image: "example/none:1" }],
        },
      } as never);
      // Budgets hold only what runs.
      const status = { phase: "Running", conditions: [{ type: "Ready", status: "True" }] };
      await client.patch(pods, name, { status }, { namespace, subresource: "status" });
    };
    const running = async () =>
      (await client.list(pods, { namespace })).items.map(({ metadata }) => metadata.name).sort();
    const drained = async (node: string) => (await runtimeOf(node)).metadata.annotations?.[labels.drains];
    const restart = (at: string) =>
      client.patch(runtimeProfiles, "sandboxed", { spec: { rollout: { restartedAt: at } } });
    const revision = async (node: string) => (await runtimeOf(node)).spec.profiles[0]?.revision;
    const isReady = (at: string | undefined) => (is: RuntimeProfile | undefined) =>
      hasCondition("Ready", "True")(is) && is?.status?.updateRevision !== at;

    for (const name of ["node-a", "node-b"]) {
      await createNode(name);
      startAgent(name);
    }
    await createProfile("sandboxed", {
      rollout: { canaryNodes: 0, maxUnavailable: 1, drain: { deadline: "15m" } },
    });
    const first = await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const old = first.status?.updateRevision;
    const owner = { apiVersion: "apps/v1", kind: "DaemonSet", name: "d", uid: "d", controller: true };
    await runPod("daemon", "node-a", { ownerReferences: [owner] });
    await runPod("free", "node-a");
    await runPod("held", "node-a", { labels: { app: "held" } });
    await client.create(budgets, {
      metadata: { name: "held", namespace },
      spec: { minAvailable: 1, selector: { matchLabels: { app: "held" } } },
    } as never);
    await allow(0);

    await restart("2026-01-01T00:00:00.000Z");
    await eventually("the pod without a budget gone", running, (names) => names?.includes("free") === false);
    const since = await drained("node-a");
    expect(since).toContain('"sandboxed"');
    const { labels: worn } = (await client.get(nodes, "node-a")).metadata;
    expect(worn).not.toHaveProperty(labels.handlerReady("sandboxed"));
    await operator.kill("SIGKILL");
    operator = await startOperator("--no-leader-elect", "--stale-after", "6");
    await sleep(3_000);
    expect(await served()).toContain('bulkhead_profile_nodes_draining{profile="sandboxed"} 1\n');
    expect(await running()).toEqual(["daemon", "held"]);
    expect(await drained("node-a")).toBe(since);
    expect([await revision("node-a"), await revision("node-b")]).toEqual([old, old]);
    expect(await drained("node-b")).toBeUndefined();
    const waiting = await profile("sandboxed");
    expect(conditionOf(waiting, "Ready")?.message).toContain("node-a");

    await allow(1);
    const second = await eventually("Ready", () => profile("sandboxed"), isReady(old));
    expect(await running()).toEqual(["daemon"]);
    for (const node of ["node-a", "node-b"]) {
      await eventually(
        `no drain of ${node}`,
        () => drained(node),
        (is) => is === undefined,
      );
      await eventually(
        `the label of ${node}`,
        () => client.get(nodes, node),
        (is) => is?.metadata.labels?.[labels.handlerReady("sandboxed")] === "ready",
      );
    }

    // Nobody lets this one go: it stays, and the rollout does not wait for ever.
    await runPod("stuck", "node-b", { labels: { app: "held" } });
    await allow(0);
    await client.patch(runtimeProfiles, "sandboxed", { spec: { rollout: { drain: { deadline: "3s" } } } });
    await restart("2026-01-02T00:00:00.000Z");
    await eventually("Ready", () => profile("sandboxed"), isReady(second.status?.updateRevision), 30_000);
    expect(await running()).toEqual(["daemon", "stuck"]);
    const told = await eventually(
      "the Event",
      async () => (await client.list(events, { namespace })).items.find((e) => e.reason === "DrainDeadline"),
      (is) => is !== undefined,
    );
    expect(told?.note).toBe("sandboxed: 1 pods stay on the former revision: default/stuck");
    await client.delete(budgets, "held", { namespace });
  });

  test("changes nothing when it is killed and started anew", async () => {
    await createNode("node-a");
    await createProfile("sandboxed");
    startAgent("node-a");
    await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
    const before = [await profile("sandboxed"), await client.get(runtimeClasses, "sandboxed")];
    const spec = (await runtimeOf("node-a")).metadata.generation;
    await operator.kill("SIGKILL");
    operator = await startOperator("--no-leader-elect", "--stale-after", "6");
    await sleep(2_000);
    expect([await profile("sandboxed"), await client.get(runtimeClasses, "sandboxed")]).toEqual(before);
    expect((await runtimeOf("node-a")).metadata.generation).toBe(spec);
  });
});

describe("With the chart's permissions and no more, the operator", () => {
  afterEach(clean);

  test("takes a profile to Ready and away again", async () => {
    const chart = await readFile(
      join(import.meta.dirname, "../../charts/bulkhead/templates/operator-rbac.yaml"),
      "utf8",
    );
    const user = "operator-of-the-chart";
    const plain = chart.replaceAll(/^ *\{\{- (if|end)[^}]*\}\}\n/gm, "").replaceAll(/\{\{[^}]*\}\}/g, "x");
    for (const object of loadAll(plain) as (KubeObject & {
      subjects?: object;
    })[]) {
      const kind = object.kind ?? "";
      const resource = {
        apiVersion: "rbac.authorization.k8s.io/v1",
        kind,
        plural: `${kind.toLowerCase()}s`,
        namespaced: kind.startsWith("Role"),
      };
      if (!/Role(Binding)?$/.test(kind)) continue;
      const subject = { apiGroup: "rbac.authorization.k8s.io", kind: "User", name: user };
      await client.create<KubeObject>(resource, {
        ...object,
        metadata: { name: object.metadata.name, ...(resource.namespaced ? { namespace } : {}) },
        ...(object.subjects ? { subjects: [subject] } : {}),
      } as KubeObject);
    }
    const admin = load(await readFile(server.kubeconfig, "utf8")) as { users: { user: object }[] };
    Object.assign(admin.users[0]!.user, { as: user });
    const kubeconfig = join(server.directory, "kubeconfig-operator");
    await writeFile(kubeconfig, dump(admin), { mode: 0o600 });

    const bounded = createClient({ config: await kubeconfigFile(kubeconfig) });
    const configMaps = { apiVersion: "v1", kind: "ConfigMap", plural: "configmaps", namespaced: true };
    await expect(bounded.list(configMaps)).rejects.toMatchObject({ code: "permission-denied" });
    await bounded.close();

    const operator = await startOperator("--kubeconfig", kubeconfig);
    try {
      await createNode("node-a");
      await createProfile("sandboxed");
      startAgent("node-a");
      await eventually("Ready", () => profile("sandboxed"), hasCondition("Ready", "True"));
      await client.patch(runtimeClasses, "sandboxed", { scheduling: null });
      await eventually(
        "the class mended",
        () => client.get(runtimeClasses, "sandboxed"),
        (is) => is?.scheduling !== undefined,
      );
      await client.delete(runtimeProfiles, "sandboxed");
      await eventually(
        "gone",
        () => profile("sandboxed"),
        (is) => is === undefined,
      );
      await client.delete(nodes, "node-a");
      await eventually(
        "the NodeRuntime gone",
        () => runtimeOf("node-a"),
        (is) => is === undefined,
      );
      operator.child.kill("SIGTERM");
      await once(operator.child, "exit");
      expect(
        operator.lines.filter((line) => line.includes("forbidden") || line.includes("not written")),
      ).toEqual([]);
      const { items } = await client.list(events, { namespace });
      expect(items.some((event) => event.regarding?.name === "sandboxed")).toBe(true);
    } finally {
      await operator.kill("SIGKILL");
    }
  });
});

describe("With an endpoint for traces the operator", () => {
  afterEach(clean);

  test("tells each reconcile that wrote something, and ends in time when the endpoint is gone", async () => {
    await using receiver = await startReceiver();
    await createNode("traced-1");
    const operator = await startOperator("--no-leader-elect", "--trace-endpoint", receiver.http);
    try {
      await createProfile("traced");
      await eventually("traced's node", () => runtimeOf("traced-1"), Boolean);
      const told = async () => {
        const spans = await receiver.spans();
        return spans.map((span) => pathOf(span, spans).join(" > "));
      };
      for (const path of [
        "reconcile RuntimeProfile > create RuntimeClass",
        "reconcile RuntimeProfile > apply the status of RuntimeProfile",
        "reconcile Node > assign > apply NodeRuntime",
      ])
        await expect.poll(told, { timeout: 50_000 }).toContain(path);
      const spans = await receiver.spans();
      const root = spans.find(({ attributes }) => attributes["bulkhead.profile"] === "traced");
      expect(root).toMatchObject({ service: "bulkhead-operator", name: "reconcile RuntimeProfile" });
      expect(root?.attributes["bulkhead.profile.revision"]).toMatch(/^[0-9a-f]{10}$/);
      const write = spans.find((span) => span.name === "apply NodeRuntime");
      expect(write).toMatchObject({
        kind: 3,
        attributes: {
          "http.request.method": "PATCH",
          "url.path": "/apis/bulkhead.dev/v1alpha1/noderuntimes/traced-1",
          "http.response.status_code": 201,
        },
      });
      // Those that wrote nothing and did not fail are not told.
      const parents = new Set(spans.map(({ parentSpanId }) => parentSpanId));
      const idle = spans.filter(
        ({ parentSpanId, spanId, failed }) => parentSpanId === "" && !parents.has(spanId) && !failed,
      );
      expect(idle).toEqual([]);
      expect(operator.lines.join("\n")).toContain(`"trace_id":"${root?.traceId}"`);

      await receiver[Symbol.asyncDispose]();
      await createProfile("traced-unseen");
      await eventually("its class", () => client.get(runtimeClasses, "traced-unseen"), Boolean);
      const stopped = performance.now();
      await operator.kill("SIGTERM");
      expect(operator.child.exitCode).toBe(0);
      expect(performance.now() - stopped).toBeLessThan(5_000);
    } finally {
      await operator.kill("SIGKILL");
    }
  });
});
