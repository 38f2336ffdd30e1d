import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import { leases } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { nodeRuntimes, nodes, runtimeClasses, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { installCrds } from "@bulkhead/test/apiserver/crds.ts";
import { type Fault, type FaultyProxy, startProxy } from "@bulkhead/test/apiserver/proxy.ts";
import { type ApiServer, startApiServer } from "@bulkhead/test/apiserver/start.ts";
import { eventually, type Operator, startOperator } from "@bulkhead/test/operator/start.ts";
import { createAgents } from "@bulkhead/test/scale/agents.ts";
import { afterAll, beforeAll, expect, onTestFailed, test } from "vitest";

/**
 * The operator where the way to the API server is bad: a proxy between them hangs, cuts, forgets, refuses and
 * garbles. The agents are test/scale's fake, on a way of their own.
 */

const namespace = "default";
const nodeNames = ["node-a", "node-b", "node-c"];
const undo = new AsyncDisposableStack();
const stop = new AbortController();
let server: ApiServer;
let client: Client;

/** A proxy of its own, asked by TLS with the API server's own certificate, and a kubeconfig that leads there. */
const startWay = async (name: string): Promise<FaultyProxy & { kubeconfig: string }> => {
  const read = (file: string) => readFile(join(server.directory, "certificates", file), "utf8");
  const certificate = { cert: await read("apiserver.crt"), key: await read("apiserver.key") };
  const proxy = await startProxy(await kubeconfigFile(server.kubeconfig), certificate);
  undo.defer(() => proxy[Symbol.asyncDispose]());
  const kubeconfig = join(server.directory, `kubeconfig-${name}`);
  const text = await readFile(server.kubeconfig, "utf8");
  await writeFile(kubeconfig, text.replace(server.url, proxy.config.server), { mode: 0o600 });
  return Object.assign(proxy, { kubeconfig });
};

beforeAll(async () => {
  server = await startApiServer();
  undo.defer(() => server[Symbol.asyncDispose]());
  client = createClient({ config: await kubeconfigFile(server.kubeconfig) });
  undo.defer(() => client.close());
  await installCrds(client);
  const fullNodes: Resource<KubeObject> = { ...nodes, metadataOnly: false };
  for (const name of nodeNames)
    await client.create(fullNodes, { metadata: { name, labels: { "kubernetes.io/os": "linux" } } });
  const agents = createAgents(client, namespace, {
    seconds: { median: 0.1, longest: 0.1 },
    failAtFirst: 0,
    flap: 0,
    heartbeatSeconds: 5,
  });
  const running = agents.run(stop.signal);
  undo.defer(async () => {
    stop.abort();
    await running;
  });
  await client.create(runtimeProfiles, {
    metadata: { name: "sandboxed" },
    spec: {
      handler: { gvisor: { platform: "systrap" } },
      rollout: { canaryNodes: 0, maxUnavailable: "100%" },
    },
  } as never);
});
afterAll(() => undo.disposeAsync());

/** Changes what reaches the nodes. */
const change = (seconds: number) =>
  client.patch(runtimeProfiles, "sandboxed", { spec: { probe: { interval: `${seconds}s` } } });

/** All of it has arrived: on every node what the profile says now, and in the status that they have it. */
const arrived = async (seconds: number, ms = 30_000) => {
  await eventually(
    `${seconds} s on every node`,
    async () => (await client.list(nodeRuntimes)).items,
    (all) =>
      all?.length === nodeNames.length &&
      all.every(({ spec }) => spec.profiles[0]?.probe?.interval === `${seconds}s`),
    ms,
  );
  await eventually(
    `Ready with ${seconds} s`,
    () => client.get(runtimeProfiles, "sandboxed"),
    (is) =>
      is?.status?.observedGeneration === is?.metadata.generation &&
      is?.status?.currentRevision === is?.status?.updateRevision &&
      is?.status?.nodes?.ready === nodeNames.length,
    ms,
  );
};

/** Seconds that a fault lasts. */
const lasts = 2;
/** Thirteen watches, four a second of the queues' retries of few keys: what an operator asks for while nothing works. */
const mostRequests = 120;

const refusal = (status: number, headers: Record<string, string> = {}, reason = ""): Fault => ({
  do: "answer",
  status,
  headers,
  body: { kind: "Status", code: status, reason, message: "injected" },
});
const isWatch = (path: string) => path.includes("watch=1");
const faults: [string, (path: string) => Fault | undefined][] = [
  ["closed connections", () => ({ do: "cut" })],
  [
    "watches that are expired, said by status",
    (path) => (isWatch(path) ? refusal(410, {}, "Expired") : undefined),
  ],
  ["watches that are expired, said by an event", (path) => (isWatch(path) ? { do: "expire" } : undefined)],
  ["429 with Retry-After: 1", () => refusal(429, { "retry-after": "1" })],
  ["429 with Retry-After: 0", () => refusal(429, { "retry-after": "0" })],
  ["500", () => refusal(500)],
  ["answers that end within an object", () => ({ do: "truncate", bytes: 300 })],
  ["slow answers", () => ({ do: "slow", ms: 400 })],
];

test("The operator comes through each fault: it asks within bounds, and nothing is lost of what changed meanwhile", async () => {
  const way = await startWay("faults");
  const operator = await startOperator(way.kubeconfig, namespace, "--no-leader-elect");
  undo.defer(() => operator.kill("SIGKILL"));
  let seconds = 60;
  await change(seconds);
  await arrived(seconds);

  for (const [name, fault] of faults) {
    way.fault = (_method, path) => fault(path);
    // What is under way feels it, too.
    way.cut();
    const asked = way.requests.length;
    await change(++seconds);
    await sleep(lasts * 1000);
    expect(way.requests.length - asked, name).toBeLessThan(mostRequests);
    way.fault = () => undefined;
    // A Retry-After that was told is kept to.
    await arrived(seconds, 45_000);
    expect(operator.child.exitCode, name).toBeNull();
  }

  way.partition();
  await change(++seconds);
  await sleep(lasts * 1000);
  way.heal();
  await arrived(seconds);
  await operator.kill("SIGTERM");
}, 240_000);

/** Writes of the operator's own work: the Lease is what they fight for. */
const work = (way: FaultyProxy) => way.writes.filter(({ request }) => !request.includes("/leases"));
const leads = (operator: Operator) => operator.lines.some((line) => line.includes('"msg":"leader"'));

test("Of two operators one writes: not the one that is cut off, though it comes back, and seconds after a kill -9 the other", async () => {
  const ways = [await startWay("one"), await startWay("two")] as const;
  const [one, two] = [
    await startOperator(ways[0].kubeconfig, namespace),
    await startOperator(ways[1].kubeconfig, namespace),
  ];
  for (const operator of [one, two]) undo.defer(() => operator.kill("SIGKILL"));
  onTestFailed(() => {
    for (const { child, lines } of [one, two])
      console.error(
        child.exitCode,
        lines
          .filter((line) => !line.includes('"level":20'))
          .slice(-15)
          .join("\n"),
      );
  });
  await eventually("a leader", async () => leads(one) || leads(two), Boolean);
  const [leader, standby] = leads(one) ? [one, two] : [two, one];
  const [theirs, others] = leads(one) ? ways : [ways[1], ways[0]];
  const gauge = async (operator: Operator) =>
    /leader_election_master_status\{name="bulkhead-operator"\} (\d)/.exec(
      await (await fetch(`http://${operator.address}/metrics`)).text(),
    )?.[1];
  expect([await gauge(leader), await gauge(standby)]).toEqual(["1", "0"]);
  const readiness = async () => (await fetch(`http://${standby.address}/readyz`)).status;
  await eventually("the standby's stores", readiness, (status) => status === 200);
  await change(100);
  await arrived(100);
  expect(work(theirs).length).toBeGreaterThan(0);
  expect(work(others)).toEqual([]);

  // Something to write all the time, so that a leader who should not would.
  let turn = 100;
  const changing = setInterval(() => void change(++turn).catch(() => {}), 250);
  try {
    const cutOff = Date.now();
    const ended = once(leader.child, "exit");
    theirs.partition();
    await eventually("the other to lead", async () => leads(standby), Boolean, 30_000);
    expect(Date.now() - cutOff).toBeLessThan(22_000);
    theirs.heal();
    expect((await ended)[0]).toBe(1);
    await eventually("work of the other", async () => work(others).length > 10, Boolean);
    const last = Math.max(...work(theirs).map(({ from, to }) => to ?? from));
    expect(last).toBeLessThan(Math.min(...work(others).map(({ from }) => from)));
  } finally {
    clearInterval(changing);
  }
  await change(++turn);
  await arrived(turn);

  const third = await startOperator(theirs.kubeconfig, namespace);
  undo.defer(() => third.kill("SIGKILL"));
  const before = work(theirs).length;
  await standby.kill("SIGKILL");
  const killed = Date.now();
  await change(++turn);
  await arrived(turn);
  expect(Date.now() - killed).toBeLessThan(25_000);
  expect(work(theirs).length).toBeGreaterThan(before);

  // One that stops gives the Lease away: nobody waits.
  await third.kill("SIGTERM");
  expect(third.child.exitCode).toBe(0);
  expect((await client.get(leases, "bulkhead-operator", { namespace })).spec?.holderIdentity).toBe("");
  expect(await client.get(runtimeClasses, "sandboxed")).toBeDefined();
}, 120_000);
