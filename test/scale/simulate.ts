import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
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
import { bundle, operatorFlags } from "../../images/bundle.ts";
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

/** The operator as its image has it: the sources take memory of their own. */
const startProgram = async (kubeconfig: string, undo: AsyncDisposableStack, say: (text: string) => void) => {
  const directory = await mkdtemp(join(tmpdir(), "bh-scale-"));
  undo.defer(() => rm(directory, { recursive: true }));
  await bundle({ operator: "operator/src/main.ts" }, directory);
  const child = spawn(
    "setpriv",
    [
      ...["--pdeathsig", "KILL", "--", process.execPath, ...operatorFlags],
      ...[join(directory, "operator.mjs"), "run"],
      ...["--kubeconfig", kubeconfig, "--namespace", "default", "--metrics-address", "127.0.0.1:0"],
      ...["--page-address", "127.0.0.1:0"],
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
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

type Figures = { cpuSeconds: number; megabytes: number; requests: number; writes: number; patches: number };
const figuresOf = async (address: string): Promise<Figures> => {
  const { samples } = parseMetrics(await (await fetch(`http://${address}/metrics`)).text());
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
  const client = createClient({ config, userAgent: "bulkhead-scale" });
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
  const figures = () => figuresOf(operator.address);
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

  const agents = createAgents(client, options.habits);
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

  const until = async (what: string, holds: () => boolean): Promise<number> => {
    const deadline = Date.now() + options.phaseMs;
    for (let turn = 0; !holds(); turn++) {
      // A run that comes to no end tells how far it came.
      if (turn % 300 === 299)
        say(
          `  ${agents.runtimes.size} NodeRuntimes, ${agents.waiting()} agents at work, ${agents.writes().answers} answers; the operator took ${Math.round(peak)} MiB at most`,
        );
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
    const after = await figures();
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
