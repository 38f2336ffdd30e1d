import { setTimeout as sleep } from "node:timers/promises";
import { labels } from "@bulkhead/lib/api/group.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import { events } from "@bulkhead/lib/kube/events.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { agentPods, daemonSets, nodes, templateRevisions } from "@bulkhead/lib/kube/resources.ts";
import { templateHash } from "@bulkhead/lib/view/agents.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { eventually, type Operator, startOperator } from "@bulkhead/test/operator/start.ts";
import { afterAll, beforeAll, expect, test } from "vitest";

/**
 * A version of Bulkhead's own on a real API server. The DaemonSet's controller and the nodes are a fake: it makes a pod of
 * the newest template where a node has none, and calls it ready unless it is of a version that never is.
 * test/chart/upgrade.cluster.test.ts has the real ones.
 */

const namespace = "default";
const agent = { "app.kubernetes.io/component": "node-agent" };
const names = ["node-a", "node-b", "node-c"];

let server: ApiServer;
let client: Client;
let operator: Operator;
const stop = new AbortController();
let faking: Promise<void>;

/** What the fake goes by. */
let version = { number: 0, comesReady: true };
let uid: string | undefined;
/** Each pod that came, in order. */
const came: { node: string; version: number; at: number }[] = [];

const owner = () => ({
  ...{ apiVersion: "apps/v1", kind: "DaemonSet", name: "bulkhead-node-agent" },
  ...{ uid: uid ?? "", controller: true },
});
const hash = (number: number): string => `hash-${number}`;

const fakeNodes = async (): Promise<void> => {
  for (let made = 0; !stop.signal.aborted; await sleep(100)) {
    const { number, comesReady } = version;
    const { items } = await client.list(agentPods, { namespace });
    for (const node of names.filter((name) => !items.some(({ spec }) => spec?.nodeName === name))) {
      const name = `agent-${made++}`;
      await client.create(agentPods, {
        metadata: {
          ...{ name, namespace, ownerReferences: [owner()] },
          labels: { ...agent, [templateHash]: hash(number) },
        },
        spec: {
          ...{ nodeName: node, terminationGracePeriodSeconds: 0 },
          containers: [{ name: "c", image: "example/none:1" }],
        },
      } as never);
      const at = Date.now();
      came.push({ node, version: number, at });
      const ready = { type: "Ready", status: comesReady ? "True" : "False" };
      const status = { conditions: [{ ...ready, lastTransitionTime: new Date(at).toISOString() }] };
      await client.patch(agentPods, name, { status }, { namespace, subresource: "status" });
    }
  }
};

/** What `helm upgrade` does, and the DaemonSet's controller on its heels. */
const release = async (rollout: object, comesReady = true): Promise<void> => {
  version = { number: version.number + 1, comesReady };
  const { number } = version;
  const env = [{ name: "AGENT_VERSION", value: `${number}.0` }];
  const template = {
    metadata: { labels: agent },
    spec: { containers: [{ name: "c", image: "example/none:1", env }] },
  };
  const metadata = { annotations: { [labels.agentRollout]: JSON.stringify(rollout) } };
  const is =
    uid === undefined
      ? await client.create(daemonSets, {
          metadata: { name: "bulkhead-node-agent", namespace, ...metadata },
          spec: { updateStrategy: { type: "OnDelete" }, selector: { matchLabels: agent }, template },
        } as never)
      : await client.patch(
          daemonSets,
          "bulkhead-node-agent",
          { metadata, spec: { template } },
          { namespace },
        );
  uid = is.metadata.uid;
  await client.create(templateRevisions, {
    metadata: {
      ...{ name: `r-${number}`, namespace, ownerReferences: [owner()] },
      labels: { ...agent, [templateHash]: hash(number) },
    },
    ...{ revision: number, data: {} },
  } as never);
  const scheduled = names.length;
  await client.patch(
    daemonSets,
    "bulkhead-node-agent",
    {
      status: {
        ...{ currentNumberScheduled: scheduled, desiredNumberScheduled: scheduled },
        ...{ numberMisscheduled: 0, numberReady: 0, observedGeneration: is.metadata.generation },
      },
    },
    { namespace, subresource: "status" },
  );
};

const pause = (paused: boolean) =>
  client.patch(
    daemonSets,
    "bulkhead-node-agent",
    { metadata: { annotations: { [labels.agentRolloutPaused]: paused ? "true" : null } } },
    { namespace },
  );
const of = (number: number) => came.filter((each) => each.version === number);
const haveIt = (number: number, count: number) =>
  eventually(
    `${count} nodes with version ${number}`,
    async () => of(number).length,
    (got) => got === count,
  );
const metric = async (name: string): Promise<number> => {
  const text = await (await fetch(`http://${operator.address}/metrics`)).text();
  const line = text.split("\n").find((each) => each.startsWith(`bulkhead_agents${name} `));
  return Number(line?.split(" ")[1]);
};
const gauge = (state: string) => metric(`{state="${state}"}`);

beforeAll(async () => {
  server = await startApiServer();
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
  await installCrds(client);
  for (const name of names)
    await client.create<KubeObject>(
      { ...nodes, metadataOnly: false },
      {
        metadata: {
          name,
          labels: { "kubernetes.io/os": "linux", ...(name === "node-c" ? { canary: "yes" } : {}) },
        },
      },
    );
  await release({});
  faking = fakeNodes();
  await haveIt(1, 3);
  operator = await startOperator(server.kubeconfig, namespace, "--no-leader-elect");
});
afterAll(async () => {
  stop.abort();
  await operator?.kill("SIGKILL");
  await faking;
  await client?.close();
  await server?.[Symbol.asyncDispose]();
});

test("A version is first on the node that canarySelector names; a pause holds it; each wave waits for minReadySeconds", async () => {
  await release({ canarySelector: { canary: "yes" }, maxUnavailable: 1, minReadySeconds: 2 });
  await haveIt(2, 1);
  await pause(true);
  // Time enough for a wave that nobody held.
  await sleep(5_000);
  expect(of(2).map(({ node }) => node)).toEqual(["node-c"]);
  const held = async () => [await metric("_paused"), await metric("_in_turn")];
  await expect.poll(held, { timeout: 50_000 }).toEqual([1, 0]);

  await pause(false);
  await haveIt(2, 2);
  await expect.poll(() => gauge("updating"), { timeout: 50_000 }).toBe(1);
  await expect.poll(held, { timeout: 50_000 }).toEqual([0, 1]);
  await haveIt(2, 3);
  const [, first, second] = of(2);
  // Times in a pod's status are of whole seconds.
  expect(second!.at - first!.at).toBeGreaterThan(1_000);
  await expect.poll(() => gauge("ready"), { timeout: 50_000 }).toBe(3);
  expect(of(1)).toHaveLength(3);
});

test("A version whose agent is not ready in time stops after its deadline, on a real API server's clock", async () => {
  await release({ canarySelector: { canary: "yes" }, deadlineSeconds: 10 }, false);
  await haveIt(3, 1);
  const told = async () =>
    (await client.list(events, { namespace })).items.filter(({ reason }) => reason === "FailureThreshold");
  const [event] = await eventually("the Event", told, (list) => list?.length === 1, 20_000);
  expect(Date.now() - of(3)[0]!.at).toBeGreaterThan(9_000);
  expect(event).toMatchObject({
    type: "Warning",
    regarding: { kind: "DaemonSet", name: "bulkhead-node-agent", uid },
    note: expect.stringMatching(/^version 3\.0: stopped: 1 nodes failed: node-c: AgentNotReady: its pod /),
  });
  await sleep(2_500);
  expect(of(3)).toMatchObject([{ node: "node-c" }]);
  expect(await gauge("failed")).toBe(1);

  // A version that is mended begins where the failed one is, and goes on from there.
  await release({ canarySelector: { canary: "yes" }, maxUnavailable: 2 });
  await haveIt(4, 3);
  expect(of(4)[0]?.node).toBe("node-c");
});
