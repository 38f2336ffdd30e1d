import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { type Client, createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { createReflector, type Reflector } from "@bulkhead/lib/kube/reflector.ts";
import { nodeRuntimes, nodes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { bundle } from "../../images/bundle.ts";
import { parseMetrics } from "../agent/agent.ts";
import { installCrds } from "../apiserver/crds.ts";
import { startApiServer } from "../apiserver/start.ts";
import { createAgents } from "./agents.ts";

/**
 * `./dev scale`: the real kube-apiserver, etcd and operator, with thousands of Nodes whose agents are a fake. Measures
 * what a change costs and how long it takes; SPECIFICATION.md has the goals.
 */
const { values } = parseArgs({
  options: {
    nodes: { type: "string", default: "5000" },
    profiles: { type: "string", default: "20" },
    /** Minutes that each phase may take. */
    minutes: { type: "string", default: "15" },
    output: { type: "string" },
  },
});
const [nodeCount, profileCount] = [Number(values.nodes), Number(values.profiles)];
const phaseMs = Number(values.minutes) * 60_000;

await using undo = new AsyncDisposableStack();
const stop = new AbortController();
undo.defer(() => stop.abort());
const say = (text: string): void => void process.stderr.write(`${text}\n`);

/** Runs `work` on numbers below `count`, so many at a time. */
const each = async (
  count: number,
  atOnce: number,
  work: (index: number) => Promise<unknown>,
): Promise<void> => {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
};

const until = async (what: string, holds: () => boolean): Promise<number> => {
  const deadline = Date.now() + phaseMs;
  while (!holds()) {
    if (operator.exitCode !== null)
      throw new RuntimeError(
        "unavailable",
        `Cannot go on with ${what}: the operator ended with ${operator.exitCode}`,
      );
    if (Date.now() > deadline)
      throw new RuntimeError("deadline-exceeded", `not within ${values.minutes} minutes: ${what}`);
    await sleep(100);
  }
  return Date.now();
};

const server = await startApiServer({
  // Everything that measures is of one identity here; its flow would be held back before anything is measured.
  flags: ["--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"],
});
undo.defer(() => server[Symbol.asyncDispose]());
const config = await kubeconfigFile(server.kubeconfig);
const client: Client = createClient({ config, userAgent: "bulkhead-scale" });
undo.defer(() => client.close());
await installCrds(client);

say(`${nodeCount} nodes …`);
const fullNodes: Resource<KubeObject> = { ...nodes, metadataOnly: false };
await each(nodeCount, 50, (index) =>
  client.create(fullNodes, {
    metadata: { name: `node-${String(index).padStart(5, "0")}`, labels: { "kubernetes.io/os": "linux" } },
  }),
);

// The program of the image: the sources take memory of their own.
const program = await mkdtemp(join(tmpdir(), "bh-scale-"));
undo.defer(() => rm(program, { recursive: true }));
await bundle({ operator: "operator/src/main.ts" }, program);
const operator = spawn(
  "setpriv",
  [
    ...["--pdeathsig", "KILL", "--", process.execPath, join(program, "operator.mjs"), "run"],
    ...["--kubeconfig", server.kubeconfig, "--namespace", "default", "--metrics-address", "127.0.0.1:0"],
    ...["--page-address", "127.0.0.1:0"],
  ],
  { stdio: ["ignore", "pipe", "inherit"] },
);
undo.defer(async () => {
  if (operator.exitCode !== null) return;
  const ended = once(operator, "exit");
  operator.kill("SIGTERM");
  await ended;
});
const { promise: address, resolve, reject } = Promise.withResolvers<string>();
operator.on("exit", () => reject(new RuntimeError("unavailable", "Cannot go on: the operator ended")));
createInterface({ input: operator.stdout }).on("line", (line) => {
  const entry = line.startsWith("{") ? (JSON.parse(line) as { msg: string; address: string }) : undefined;
  if (entry?.msg === "started") resolve(entry.address);
});
const metricsAddress = await address;

type Figures = { cpuSeconds: number; megabytes: number; requests: number; writes: number };
const figures = async (): Promise<Figures> => {
  const { samples } = parseMetrics(await (await fetch(`http://${metricsAddress}/metrics`)).text());
  const sum = (name: string, holds: (labels: Record<string, string>) => boolean = () => true): number =>
    samples
      .filter((each) => each.name === name && holds(each.labels))
      .reduce((all, { value }) => all + value, 0);
  return {
    cpuSeconds: sum("process_cpu_seconds_total"),
    megabytes: sum("process_resident_memory_bytes") / 2 ** 20,
    requests: sum("rest_client_requests_total"),
    writes: sum("rest_client_requests_total", ({ method }) => method !== "GET"),
  };
};
let peak = 0;
const sampling = setInterval(() => {
  figures().then(
    ({ megabytes }) => {
      peak = Math.max(peak, megabytes);
    },
    () => {},
  );
}, 2000);
undo.defer(() => clearInterval(sampling));

const agents = createAgents(client, {
  seconds: { median: 2, longest: 20 },
  failAtFirst: 0.005,
  flap: 0.001,
  heartbeatSeconds: 60,
});
const follow = <T extends KubeObject>(resource: Resource<T>): Reflector<T> =>
  createReflector<T>({ client, resource });
const [watchedProfiles, watchedRuntimes] = [
  follow<RuntimeProfile>(runtimeProfiles),
  follow<NodeRuntime>(nodeRuntimes),
];
const background = [
  agents.run(stop.signal),
  watchedProfiles.run(stop.signal),
  watchedRuntimes.run(stop.signal),
];
undo.defer(async () => {
  stop.abort();
  await Promise.allSettled(background);
});
await Promise.all([agents.synced, watchedProfiles.synced, watchedRuntimes.synced]);

const allRuntimes = (): NodeRuntime[] => [...watchedRuntimes.store.list()];
const ready = (): boolean => {
  const all = [...watchedProfiles.store.list()];
  return (
    all.length === profileCount &&
    all.every(
      ({ metadata, status }) =>
        status?.observedGeneration === metadata.generation &&
        status?.nodes?.ready === nodeCount &&
        status.nodes.updated === nodeCount &&
        status.conditions?.some(({ type, status: is }) => type === "Ready" && is === "True"),
    )
  );
};

type Phase = {
  phase: string;
  writtenSeconds?: number;
  readySeconds?: number;
  afterLastAnswerSeconds?: number;
  requestsPerNode: number;
  cpuSeconds: number;
};
const phases: Phase[] = [];
const measure = async (
  phase: string,
  change: () => Promise<unknown>,
  written: () => boolean,
): Promise<void> => {
  say(`${phase} …`);
  const before = await figures();
  const begun = Date.now();
  await change();
  const writtenAt = await until(`${phase}: every node's desired state written`, written);
  const readyAt = await until(`${phase}: every profile Ready on every node`, ready);
  const after = await figures();
  phases.push({
    phase,
    writtenSeconds: (writtenAt - begun) / 1000,
    readySeconds: (readyAt - begun) / 1000,
    afterLastAnswerSeconds: Math.max(0, (readyAt - agents.lastAnswer()) / 1000),
    requestsPerNode: (after.requests - before.requests) / nodeCount,
    cpuSeconds: after.cpuSeconds - before.cpuSeconds,
  });
  say(JSON.stringify(phases.at(-1)));
};

const nameOf = (index: number): string => `profile-${String(index).padStart(2, "0")}`;
await measure(
  `apply ${profileCount} profiles`,
  () =>
    each(profileCount, 4, (index) =>
      client.create(runtimeProfiles, {
        metadata: { name: nameOf(index) },
        spec: {
          handler: { gvisor: { platform: "systrap" } },
          probe: { interval: "60s", assertIsolation: true },
        },
      } as never),
    ),
  () => {
    const all = allRuntimes();
    return all.length === nodeCount && all.every(({ spec }) => spec.profiles.length === profileCount);
  },
);

const oldRevision = (name: string): string | undefined =>
  watchedProfiles.store.get(name)?.status?.updateRevision;
const first = nameOf(0);
const revisionBefore = oldRevision(first);
await measure(
  "change one profile, 25% of the nodes at a time",
  () => client.patch(runtimeProfiles, first, { spec: { handler: { gvisor: { platform: "ptrace" } } } }),
  () =>
    allRuntimes().every(({ spec }) =>
      spec.profiles.every((entry) => entry.name !== first || entry.revision !== revisionBefore),
    ),
);

say("a quiet minute …");
await until("the agents to be quiet", () => agents.waiting() === 0);
const before = await figures();
const beats = agents.writes();
await sleep(60_000);
const after = await figures();
phases.push({
  phase: `a quiet minute with ${agents.writes() - beats} status writes of agents`,
  requestsPerNode: (after.requests - before.requests) / nodeCount,
  cpuSeconds: after.cpuSeconds - before.cpuSeconds,
});
say(`a quiet minute: ${after.requests - before.requests} requests of the operator, its Lease's among them`);

const bytes = (object: unknown): number => Buffer.byteLength(JSON.stringify(object));
const largest = {
  NodeRuntime: Math.max(...allRuntimes().map(bytes)),
  RuntimeProfile: Math.max(...[...watchedProfiles.store.list()].map(bytes)),
};
const result = {
  nodes: nodeCount,
  profiles: profileCount,
  phases,
  quietWrites: after.writes - before.writes,
  operator: { peakMegabytes: Math.round(peak), cpuSeconds: Math.round(after.cpuSeconds) },
  largestObjectBytes: largest,
};
const rounded = (value: number | undefined): string => (value === undefined ? "" : value.toFixed(2));
process.stdout.write(
  [
    "| phase | written s | Ready s | after the last answer s | requests per node | operator CPU s |",
    "|---|---|---|---|---|---|",
    ...phases.map(
      (each) =>
        `| ${each.phase} | ${rounded(each.writtenSeconds)} | ${rounded(each.readySeconds)} | ${rounded(each.afterLastAnswerSeconds)} | ${rounded(each.requestsPerNode)} | ${rounded(each.cpuSeconds)} |`,
    ),
    "",
    `Operator: ${result.operator.peakMegabytes} MB at most. Largest objects: NodeRuntime ${largest.NodeRuntime} bytes, RuntimeProfile ${largest.RuntimeProfile} bytes.`,
    "",
  ].join("\n"),
);
if (values.output) await writeFile(values.output, `${JSON.stringify(result, null, 2)}\n`);

const missed = [
  ...phases.flatMap(({ phase, afterLastAnswerSeconds: s }) =>
    s !== undefined && s > 60
      ? [`${phase}: ${s.toFixed(0)} s after the last agent's answer; the goal is 60`]
      : [],
  ),
  ...(peak > 300 ? [`the operator took ${peak.toFixed(0)} MB; the goal is 300`] : []),
  ...Object.entries(largest).flatMap(([kind, size]) =>
    size > 32 * 1024 ? [`a ${kind} has ${size} bytes; the goal is 32 KiB`] : [],
  ),
  // Heartbeats alone ask for nothing: the Lease's 60 requests, a watch that ends, and what flapping nodes ask for.
  ...(after.requests - before.requests > 100 + nodeCount * 0.01
    ? [`a quiet minute cost ${after.requests - before.requests} requests`]
    : []),
];
for (const miss of missed) say(`missed: ${miss}`);
process.exitCode = missed.length > 0 ? 1 : 0;
