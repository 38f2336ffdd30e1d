import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { createClient } from "@bulkhead/lib/kube/client.ts";
import { kubeconfigFile } from "@bulkhead/lib/kube/config.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { createReflector } from "@bulkhead/lib/kube/reflector.ts";
import { nodeRuntimes, nodes, runtimeProfiles } from "@bulkhead/lib/kube/resources.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { bundle, operatorEnvironment, operatorFlags } from "../../images/bundle.ts";
import { parseMetrics } from "../agent/agent.ts";
import { installCrds } from "../apiserver/crds.ts";
import { startApiServer } from "../apiserver/start.ts";
import { createAgents, type Habits } from "./agents.ts";
import type { Phase, Result } from "./goals.ts";

export type Simulation = {
  nodes: number;
  profiles: number;
  habits: Habits;
  /** What a phase may take. */
  phaseMs: number;
  quietMs: number;
  say?: (text: string) => void;
};

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

const nameOf = (index: number): string => `profile-${String(index).padStart(2, "0")}`;

/** What V8 takes for its heap in the chart's 384Mi, where it sees that limit; here it would see the machine's memory. */
const heapFlag = "--max-old-space-size=256";

/** The operator as its image has it: the sources take memory of their own. */
const startProgram = async (kubeconfig: string, undo: AsyncDisposableStack, say: (text: string) => void) => {
  const directory = await mkdtemp(join(tmpdir(), "bh-scale-"));
  undo.defer(() => rm(directory, { recursive: true }));
  await bundle({ operator: "operator/src/main.ts" }, directory);
  const child = spawn(
    "setpriv",
    [
      ...["--pdeathsig", "KILL", "--", process.execPath, ...operatorFlags, heapFlag],
      ...[join(directory, "operator.mjs"), "run"],
      ...["--kubeconfig", kubeconfig, "--namespace", "default", "--metrics-address", "127.0.0.1:0"],
      ...["--page-address", "127.0.0.1:0"],
    ],
    { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...operatorEnvironment } },
  );
  undo.defer(async () => {
    if (child.exitCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGTERM");
    await ended;
  });
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  child.on("exit", () => reject(new RuntimeError("unavailable", "Cannot go on: the operator ended")));
  createInterface({ input: child.stdout }).on("line", (line) => {
    if (!line.startsWith("{")) return;
    const entry = JSON.parse(line) as { level: number; msg: string; address: string };
    if (entry.msg === "started") resolve(entry.address);
    if (entry.level >= 40) say(line);
  });
  return { child, address: await promise };
};

type Samples = ReturnType<typeof parseMetrics>["samples"];
const samplesOf = async (address: string): Promise<Samples> =>
  parseMetrics(await (await fetch(`http://${address}/metrics`)).text()).samples;

type Figures = {
  cpuSeconds: number;
  megabytes: number;
  requests: number;
  writes: number;
  patches: number;
  waiting: number;
};
const figuresOf = (samples: Samples): Figures => {
  const sum = (name: string, holds: (labels: Record<string, string>) => boolean = () => true): number =>
    samples
      .filter((sample) => sample.name === name && holds(sample.labels))
      .reduce((all, { value }) => all + value, 0);
  return {
    cpuSeconds: sum("process_cpu_seconds_total"),
    megabytes: sum("process_resident_memory_bytes") / 2 ** 20,
    requests: sum("rest_client_requests_total"),
    writes: sum("rest_client_requests_total", ({ method }) => method !== "GET"),
    patches: sum("rest_client_requests_total", ({ method }) => method === "PATCH"),
    waiting: sum("workqueue_depth") + sum("controller_runtime_active_workers"),
  };
};

/** What the operator does, since it was asked last. */
const progressOf = (samples: () => Promise<Samples>) => {
  let before = new Map<string, number>();
  return async (): Promise<string> => {
    const now = new Map<string, number>();
    const add = (key: string, value: number) => now.set(key, (now.get(key) ?? 0) + value);
    const gauges: string[] = [];
    for (const { name, labels, value } of await samples()) {
      if (name === "rest_client_requests_total") add(`${labels.method} ${labels.code}`, value);
      if (name === "controller_runtime_reconcile_total") add(`${labels.controller} ${labels.result}`, value);
      if (name === "process_cpu_seconds_total") add("CPU s", value);
      if (name === "workqueue_depth" || name === "controller_runtime_active_workers")
        gauges.push(`${labels.controller} ${name === "workqueue_depth" ? "waiting" : "working"} ${value}`);
      if (
        name === "process_resident_memory_bytes" ||
        name === "nodejs_heap_size_used_bytes" ||
        name === "nodejs_external_memory_bytes"
      )
        gauges.push(`${name.split("_")[1]} ${Math.round(value / 2 ** 20)} MiB`);
    }
    const since = [...now]
      .map(([key, value]) => [key, value - (before.get(key) ?? 0)] as const)
      .filter(([, value]) => value > 0)
      .map(([key, value]) => `${key} +${Math.round(value * 10) / 10}`);
    before = now;
    return [...gauges, ...since].join(", ");
  };
};

/** Programs that this process started, with what each took of a processor since it was asked last. */
const processorsOf = () => {
  let [before, at] = [new Map<string, number>(), Date.now()];
  return async (): Promise<string> => {
    const now = new Map<string, { ticks: number; text: string }>();
    for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
      const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
      const [, name = "", rest = ""] = /^\d+ \((.*)\) (.*)/.exec(stat) ?? [];
      const fields = rest.split(" ");
      if (Number(fields[1]) !== process.pid && Number(pid) !== process.pid) continue;
      const ticks = Number(fields[11]) + Number(fields[12]);
      now.set(pid, { ticks, text: `${name} ${Math.round((Number(fields[21]) * 4096) / 2 ** 20)} MiB` });
    }
    const seconds = (Date.now() - at) / 1000;
    const lines = [...now].map(
      ([pid, { ticks, text }]) => `${text} ${Math.round((ticks - (before.get(pid) ?? 0)) / seconds)} %`,
    );
    before = new Map([...now].map(([pid, { ticks }]) => [pid, ticks]));
    at = Date.now();
    return lines.join(", ");
  };
};

/** The real kube-apiserver, etcd and operator with Nodes whose agents are a fake: what changes cost, and how long. */
export const simulate = async (options: Simulation): Promise<Result> => {
  const { nodes: nodeCount, profiles: profileCount, say = () => {} } = options;
  await using undo = new AsyncDisposableStack();
  const stop = new AbortController();

  const server = await startApiServer({
    // Everything that measures is of one identity here; its flow would be held back before anything is measured.
    flags: ["--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000"],
  });
  undo.defer(() => server[Symbol.asyncDispose]());
  const config = await kubeconfigFile(server.kubeconfig);
  // As many as the agents have under way at a time.
  const client = createClient({ config, userAgent: "bulkhead-scale", connections: 100 });
  undo.defer(() => client.close());
  await installCrds(client);

  say(`${nodeCount} nodes …`);
  const fullNodes: Resource<KubeObject> = { ...nodes, metadataOnly: false };
  await each(nodeCount, 50, (index) =>
    client.create(fullNodes, {
      metadata: { name: `node-${String(index).padStart(5, "0")}`, labels: { "kubernetes.io/os": "linux" } },
    }),
  );

  const operator = await startProgram(server.kubeconfig, undo, say);
  const figures = async () => figuresOf(await samplesOf(operator.address));
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

  const agents = createAgents(client, "default", options.habits);
  const watched = createReflector<RuntimeProfile>({ client, resource: runtimeProfiles });
  /** Of the profiles nobody but the operator writes the status. */
  let statuses = 0;
  watched.on(({ type }) => {
    if (type === "updated") statuses++;
  });
  const background = [agents.run(stop.signal), watched.run(stop.signal)];
  undo.defer(async () => {
    stop.abort();
    await Promise.allSettled(background);
  });
  await Promise.all([agents.synced, watched.synced]);

  const processors = processorsOf();
  const told = progressOf(() => samplesOf(operator.address));
  const progress = async () => {
    const { answered, queued, eldestMs } = agents.progress();
    const { answers, heartbeats, sameAgain, kubelets } = agents.writes();
    const given = [...agents.runtimes.list()].filter(
      ({ spec }) => spec.profiles.length === profileCount,
    ).length;
    const standing = [...watched.store.list()].map(({ status }) => status?.nodes);
    const silent = Math.max(
      0,
      ...[...watched.store.list()].map(({ status }) =>
        Number(
          /^(\d+) of/.exec(
            status?.conditions?.find(({ reason }) => reason === "AgentsSilent")?.message ?? "",
          )?.[1] ?? 0,
        ),
      ),
    );
    const least = (of: "updated" | "ready") => Math.min(...standing.map((nodes) => nodes?.[of] ?? 0));
    return [
      `  NodeRuntimes: ${agents.runtimes.size}, ${given} whole, ${answered} answered, ${silent} silent; ` +
        `least of a profile: ${least("updated")} updated, ${least("ready")} ready`,
      `    agents: ${agents.waiting()} at work, ${queued} queued, eldest ${Math.round(eldestMs)} ms; wrote ${answers} answers, ${heartbeats + sameAgain} signs of life, ${kubelets} Nodes`,
      `    operator: ${await told()}`,
      `    processors: ${await processors()}`,
    ].join("\n");
  };
  const until = async (what: string, holds: () => boolean): Promise<number> => {
    const deadline = Date.now() + options.phaseMs;
    for (let turn = 0; !holds(); turn++) {
      // A run that comes to no end tells how far it came, and what is at work.
      if (turn % 100 === 99) await progress().then(say, () => {});
      const { exitCode } = operator.child;
      if (exitCode !== null)
        throw new RuntimeError(
          "unavailable",
          `Cannot go on with ${what}: the operator ended with ${exitCode}`,
        );
      if (Date.now() > deadline)
        throw new RuntimeError(
          "deadline-exceeded",
          `not within ${options.phaseMs / 60_000} minutes: ${what}`,
        );
      await sleep(100);
    }
    return Date.now();
  };
  const every = (holds: (runtime: NodeRuntime) => boolean): boolean => {
    if (agents.runtimes.size !== nodeCount) return false;
    for (const runtime of agents.runtimes.list()) if (!holds(runtime)) return false;
    return true;
  };
  const ready = (): boolean => {
    const all = [...watched.store.list()];
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

  const phases: Phase[] = [];
  const measure = async (
    phase: string,
    nodeWritesGoal: number,
    change: () => Promise<unknown>,
    written: () => boolean,
  ) => {
    say(`${phase} …`);
    const [before, statusesBefore] = [await figures(), statuses];
    const begun = Date.now();
    await change();
    const writtenAt = await until(`${phase}: every node's desired state written`, written);
    const readyAt = await until(`${phase}: every profile Ready on every node`, ready);
    // Where the API server is slow, labels are written after the profiles say that all is well: they are this phase's.
    const deadline = Date.now() + 60_000;
    let after = await figures();
    for (; after.waiting > 0 && Date.now() < deadline; after = await figures()) await sleep(500);
    phases.push({
      phase,
      writtenSeconds: (writtenAt - begun) / 1000,
      readySeconds: (readyAt - begun) / 1000,
      afterLastAnswerSeconds: Math.max(0, (readyAt - agents.lastAnswer()) / 1000),
      requests: after.requests - before.requests,
      writes: after.writes - before.writes,
      nodeWritesGoal,
      nodeWrites: after.patches - before.patches - (statuses - statusesBefore),
      cpuSeconds: after.cpuSeconds - before.cpuSeconds,
      megabytes: after.megabytes,
    });
    say(JSON.stringify(phases.at(-1)));
  };

  await measure(
    "apply all profiles",
    // Its NodeRuntime as it comes to be and as profiles pass their canaries, and its labels.
    6,
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
    () => every(({ spec }) => spec.profiles.length === profileCount),
  );

  const first = nameOf(0);
  const revisionBefore = watched.store.get(first)?.status?.updateRevision;
  await measure(
    "change one profile, 25% of the nodes at a time",
    1.5,
    () => client.patch(runtimeProfiles, first, { spec: { handler: { gvisor: { platform: "ptrace" } } } }),
    () =>
      every(({ spec }) =>
        spec.profiles.every((entry) => entry.name !== first || entry.revision !== revisionBefore),
      ),
  );

  say("quiet …");
  await until("the agents to be quiet", () => agents.waiting() === 0 && ready());
  // What the last answers asked for.
  await sleep(3000);
  const [before, said] = [await figures(), agents.writes()];
  await sleep(options.quietMs);
  const [after, saidSince] = [await figures(), agents.writes()];
  const since = (kind: keyof typeof said): number => saidSince[kind] - said[kind];

  const bytes = (object: unknown): number => Buffer.byteLength(JSON.stringify(object));
  /** As the API server keeps them, with what it keeps of who wrote which field. */
  const largest = async <T extends KubeObject>(resource: Resource<T>): Promise<number> => {
    let [most, at] = [0, undefined as string | undefined];
    do {
      const page = await client.list(resource, { limit: 100, ...(at ? { continue: at } : {}) });
      most = Math.max(most, ...page.items.map(bytes));
      at = page.continue;
    } while (at);
    return most;
  };
  return {
    nodes: nodeCount,
    profiles: profileCount,
    phases,
    quiet: {
      seconds: options.quietMs / 1000,
      requests: after.requests - before.requests,
      writes: after.writes - before.writes,
      cpuSeconds: after.cpuSeconds - before.cpuSeconds,
      heartbeats: since("heartbeats"),
      sameAgain: since("sameAgain"),
      flaps: since("flaps"),
      kubelets: since("kubelets"),
    },
    operator: { peakMegabytes: Math.round(peak), cpuSeconds: Math.round(after.cpuSeconds) },
    largestBytes: {
      NodeRuntime: await largest(nodeRuntimes),
      RuntimeProfile: await largest(runtimeProfiles),
    },
  };
};
