import { generateKeyPairSync } from "node:crypto";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { dump, load } from "js-yaml";
import { afterAll, beforeAll, expect, test } from "vitest";
import { bulkheadCluster, namespace, profileReady, profiles } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { pushImages } from "../cluster/push-images.ts";
import { agentsSettled } from "../cluster/settled.ts";
import { inNamespace, type Namespace, type Pod, podOf } from "../pods/kube.ts";
import { type Lives, livesOf } from "../pods/lives.ts";
import { outcome } from "../tools/run.ts";
import { pushFailing } from "./failing.ts";
import { chart } from "./values.ts";

/**
 * Bulkhead goes to its next version by Helm and back again, on a live cluster with pods behind every wall. The next
 * version is this tree with a raised number: in the chart, in every program, in the bundle's bytes; and with one field
 * more in its RuntimeProfile. First comes one whose runtime does not start. The tests stand on each other in this order.
 */

let cluster: Cluster;
let ns: Namespace;
let directory: string;
let before: Lives;
let version: string;
let next: string;
let tag: string;
let formerTag: string;
let formerRevision: string;

const pods = () => cluster.nodes.flatMap((node) => [undefined, ...profiles].map((wall) => ({ node, wall })));
const lives = () => livesOf(ns, cluster.nodes);
const helm = (...argv: string[]) => cluster.helm([...argv, "--namespace", namespace]);
const runtimes = async (): Promise<NodeRuntime[]> =>
  (JSON.parse(await cluster.kubectl(["get", "noderuntimes", "-o", "json"])) as { items: NodeRuntime[] })
    .items;
/** As docs/install.md says it: Helm never upgrades definitions. */
const applyDefinitions = (of: string) =>
  cluster.kubectl(["apply", "--server-side", "--force-conflicts", "-f", join(of, "crds")]);

/** This chart as its next version would be. */
const writeNext = async (to: string): Promise<void> => {
  await cp(chart, to, { recursive: true });
  const manifest = join(to, "Chart.yaml");
  const text = await readFile(manifest, "utf8");
  await writeFile(manifest, text.replaceAll(version, next));
  const definition = join(to, "crds/runtimeprofiles.yaml");
  const crd = load(await readFile(definition, "utf8")) as {
    spec: { versions: { schema: { openAPIV3Schema: { properties: { spec: { properties: object } } } } }[] };
  };
  Object.assign(crd.spec.versions[0]!.schema.openAPIV3Schema.properties.spec.properties, {
    note: { type: "string" },
  });
  await writeFile(definition, dump(crd));
};

beforeAll(async () => {
  cluster = await bulkheadCluster();
  directory = await mkdtemp(join(tmpdir(), "bh-upgrade-"));
  version = (load(await readFile(join(chart, "Chart.yaml"), "utf8")) as { version: string }).version;
  next = version.replace(/\d+/, (major) => String(Number(major) + 1));
  await writeNext(join(directory, "next"));
  formerRevision = String(
    (JSON.parse(await helm("history", "bulkhead", "-o", "json")) as { revision: number }[]).at(-1)?.revision,
  );
  formerTag = JSON.parse(await helm("get", "values", "bulkhead", "-o", "json")).image.tag;
  tag = await pushImages(cluster.registry, undefined, next);
  ns = inNamespace(cluster, "upgrade");
  await ns.create();
  const image = `${cluster.registry}/bulkhead/test:1`;
  for (const { node, wall } of pods())
    await ns.apply(podOf(`${wall ?? "engine"}-${node.name}`, wall, image, {}, { nodeName: node.name }));
  await ns.kubectl(["wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s"]);
  before = await lives();
});
afterAll(async () => {
  if (cluster === undefined) return;
  await applyDefinitions(chart);
  await cluster.kubectl(["delete", "configmap", "runtime-keys", "-n", namespace, "--ignore-not-found"]);
  await ns?.destroy();
  if (directory !== undefined) await rm(directory, { recursive: true });
});

/**
 * Everything is of this version, and came in turn: when the second node's agent first spoke, the first node had the
 * runtime of its version, proven. Returns the first node.
 */
const goesTo = async (
  release: string,
  agent: string,
  move: () => Promise<unknown>,
): Promise<string | undefined> => {
  const isProven = ({ status }: NodeRuntime): boolean =>
    status?.runtimeVersion?.includes(release) === true &&
    profiles.every((name) => status.profiles?.find((each) => each.name === name)?.phase === "Ready");
  const seen: NodeRuntime[][] = [];
  const stop = new AbortController();
  const watching = (async () => {
    while (!stop.signal.aborted) {
      seen.push(await runtimes());
      await sleep(300);
    }
  })();
  try {
    await move();
  } finally {
    stop.abort();
    await watching;
  }
  const isOf = ({ status }: NodeRuntime): boolean => status?.agentVersion === agent;
  const first = seen.find((nodes) => nodes.some(isOf))?.find(isOf)?.metadata.name;
  const both = seen.find((nodes) => nodes.every(isOf));
  expect(first).toBeDefined();
  expect(both?.find(({ metadata }) => metadata.name === first)).toSatisfy(isProven);

  expect(await rolloutStatus("--no-watch")).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("RolledOut"),
  });
  // Helm waited for all of it: an agent is ready when what it brought is proven.
  for (const node of await runtimes()) expect(node).toSatisfy(isProven);
  await agentsSettled(cluster, namespace, profiles, AbortSignal.timeout(30_000));
  const said = ["--", "/bundle/bin/node", "/app/operator.mjs", "version"];
  const exec = ["-n", namespace, "exec", "deployment/bulkhead-operator"];
  expect(await cluster.kubectl([...exec, ...said])).toBe(`${release}\n`);
  for (const name of profiles) await profileReady(cluster, name, undefined, 30);
  return first;
};

/** The uid of each node's agent. */
const agents = async (): Promise<Record<string, string>> => {
  const get = ["get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=node-agent", "-o", "json"];
  const { items } = JSON.parse(await cluster.kubectl(get)) as { items: Pod[] };
  return Object.fromEntries(items.map(({ metadata, spec }) => [spec.nodeName, metadata.uid]));
};
const rollout = (...argv: string[]) => {
  const plugin = join(import.meta.dirname, "../../kubectl/src/main.ts");
  return outcome([process.execPath, plugin, "--kubeconfig", cluster.kubeconfig, "rollout", ...argv]);
};
/** As `kubectl bulkhead rollout status` has it. */
const rolloutStatus = (...flags: string[]) => rollout("status", "--timeout", "90", ...flags);

test("A version that fails stops at its first node, and a rollback begins with that node", async () => {
  const digest = await pushFailing(cluster.registry, tag, directory);
  const agentsBefore = await agents();
  await applyDefinitions(join(directory, "next"));
  await helm(
    ...["upgrade", "bulkhead", join(directory, "next"), "--reset-then-reuse-values"],
    ...["--set", `image.tag=${tag}`, "--set", `image.digests.nodeAgent=${digest}`],
  );
  const { code, stderr } = await rolloutStatus();
  expect(stderr).toMatch(
    /FailureThreshold: stopped: 1 nodes failed: node-\d: EngineFailed: The runtime did not become ready: .*this version does not start/,
  );
  expect(code).toBe(1);
  const failed = /failed: (node-\d): /.exec(stderr)?.[1] ?? "";
  const other = cluster.nodes.map(({ name }) => name).find((name) => name !== failed) ?? "";
  // Time enough for a wave that nobody held.
  await sleep(5_000);
  expect((await agents())[other]).toBe(agentsBefore[other]);
  const versions = Object.fromEntries(
    (await runtimes()).map(({ metadata, status }) => [metadata.name, status?.agentVersion]),
  );
  expect(versions).toEqual({ [failed]: tag, [other]: formerTag });
  const events = ["get", "events", "-n", namespace, "--field-selector", "reason=FailureThreshold"];
  expect(await cluster.kubectl([...events, "-o", "wide"])).toMatch(/daemonset\/bulkhead-node-agent/i);
  expect(await lives()).toEqual(before);

  await helm("rollback", "bulkhead", "--wait", "--timeout", "3m");
  expect(await rolloutStatus("--no-watch")).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("RolledOut"),
  });
  await agentsSettled(cluster, namespace, profiles, AbortSignal.timeout(30_000));
  for (const name of profiles) await profileReady(cluster, name, undefined, 30);
  // The node that never had another version kept its agent throughout.
  expect((await agents())[other]).toBe(agentsBefore[other]);
  expect(await lives()).toEqual(before);
});

test("An upgrade brings the next version to every node in turn, and no running container notices", async () => {
  await applyDefinitions(join(directory, "next"));
  const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString();
  await cluster.kubectl([
    ...["create", "configmap", "runtime-keys", "-n", namespace],
    `--from-literal=nobody.pub=${pem}`,
  ]);
  const signatures = [
    { images: [`${cluster.registry}/bulkhead/test`], keys: ["/etc/bulkhead/files/nobody.pub"] },
  ];
  const canary = cluster.nodes.at(-1)?.name ?? "";
  const rollout = { canarySelector: { "kubernetes.io/hostname": canary }, minReadySeconds: 3 };
  const first = await goesTo(next, tag, () =>
    helm(
      ...["upgrade", "bulkhead", join(directory, "next"), "--reset-then-reuse-values"],
      ...["--set", "runtime.files.configMap=runtime-keys"],
      ...["--set-json", `runtime.config=${JSON.stringify({ images: { signatures } })}`],
      ...["--set-json", `agent.rollout=${JSON.stringify(rollout)}`],
      ...["--set", `image.tag=${tag}`, "--wait", "--timeout", "3m"],
    ),
  );
  expect(first).toBe(canary);
  expect(await lives()).toEqual(before);
  // A field of the next version is kept, by an operator that does not know it, too.
  await cluster.kubectl(["patch", "rtp", "standard", "--type=merge", "-p", '{"spec":{"note":"kept"}}']);
  const image = `${cluster.registry}/bulkhead/test:1`;
  await ns.run(podOf("newer", "sandboxed", image));
});

test("A signature policy of the chart's values refuses an image that nobody signed, in words that kubectl shows", async () => {
  const image = `${cluster.registry}/bulkhead/test:1`;
  const container = { imagePullPolicy: "Always" };
  await ns.apply(podOf("unsigned", "standard", image, container));
  await ns.kubectl([
    ...["wait", "pod/unsigned", "--timeout=60s"],
    "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=SignatureValidationFailed",
  ]);
  const [node] = cluster.nodes;
  expect((await node?.exec(["stat", "-c", "%a", "/etc/bulkhead/files/nobody.pub"]))?.trim()).toBe("600");
  await ns.kubectl(["delete", "pod", "unsigned", "--now"]);
});

test("Settings that the runtime does not take are told by their name, and change nothing on any node", async () => {
  const read = () =>
    Promise.all(cluster.nodes.map((node) => node.exec(["cat", "/etc/bulkhead/runtime.yaml"])));
  const good = await read();
  await helm(
    ...["upgrade", "bulkhead", join(directory, "next"), "--reset-then-reuse-values"],
    ...["--set-json", 'runtime.config={"images":{"pined":[]}}'],
  );
  const { code, stderr } = await rolloutStatus();
  expect(stderr).toMatch(/FailureThreshold: .*InvalidRuntimeConfig: .*images\.pined: unknown key/);
  expect(code).toBe(1);
  expect(await read()).toEqual(good);
  await helm("rollback", "bulkhead", "--wait", "--timeout", "3m");
  await agentsSettled(cluster, namespace, profiles, AbortSignal.timeout(30_000));
});

test("An agent that never comes stops the rollout after its deadline; the way back waits while it is paused", async () => {
  const agentsBefore = await agents();
  await helm(
    ...["upgrade", "bulkhead", join(directory, "next"), "--reset-then-reuse-values"],
    ...[
      "--set",
      `image.digests.nodeAgent=sha256:${"0".repeat(64)}`,
      "--set",
      "agent.rollout.deadlineSeconds=10",
    ],
  );
  const { code, stderr } = await rolloutStatus();
  expect(stderr).toMatch(/FailureThreshold: stopped: 1 nodes failed: node-\d: AgentNotReady: /);
  expect(code).toBe(1);
  const stopped = await agents();
  const moved = Object.keys(stopped).filter((node) => stopped[node] !== agentsBefore[node]);
  expect(moved).toHaveLength(1);

  expect(await rollout("pause")).toMatchObject({ code: 0 });
  await helm("rollback", "bulkhead");
  // Time enough for a wave that nobody held: the operator is the same, and was not away.
  await sleep(5_000);
  expect(await agents()).toEqual(stopped);
  expect((await rolloutStatus("--no-watch")).stdout).toContain("Paused");
  expect(await rollout("resume")).toMatchObject({ code: 0 });
  expect(await rolloutStatus()).toMatchObject({ code: 0, stdout: expect.stringContaining("RolledOut") });
  expect(Object.keys(await agents()).sort()).toEqual(Object.keys(agentsBefore).sort());
  await agentsSettled(cluster, namespace, profiles, AbortSignal.timeout(30_000));
});

test("A rollback brings the former version back in the same way, and what the next one stored is kept", async () => {
  before = await lives();
  expect(Object.keys(before)).toContain("newer/main");
  await goesTo(version, formerTag, () =>
    helm("rollback", "bulkhead", formerRevision, "--wait", "--timeout", "3m"),
  );
  expect(await lives()).toEqual(before);
  const note = async () => cluster.kubectl(["get", "rtp", "standard", "-o", "jsonpath={.spec.note}"]);
  expect(await note()).toBe("kept");
  await cluster.kubectl(["patch", "rtp", "standard", "--type=merge", "-p", '{"spec":{"note":null}}']);
  await profileReady(cluster, "standard", undefined, 30);
});
