import type { NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { createReflector } from "@bulkhead/lib/kube/reflector.ts";
import { nodeRuntimes } from "@bulkhead/lib/kube/resources.ts";

/**
 * A fake of thousands of node agents, in one process: each sees its NodeRuntime, takes its time, and reports as the real
 * reporter does. Some take long, some fail at first, some report a canary that fails and passes again.
 */
export type Habits = {
  /** Seconds from a spec to the report that it serves: the median, and the longest of a thousand. */
  seconds: { median: number; longest: number };
  /** Shares of nodes. */
  failAtFirst: number;
  flap: number;
  heartbeatSeconds: number;
};

export type Agents = {
  /** When the last agent answered a change of its spec. */
  lastAnswer(): number;
  /** Status writes so far. */
  writes(): number;
  /** Specs seen and not answered yet. */
  waiting(): number;
  /** Heartbeats go on only while this is set: a quiet minute is measured with them alone. */
  run(signal: AbortSignal): Promise<void>;
  synced: Promise<void>;
};

/** A number in [0, 1) that is a node's own, so that a run can be repeated. */
const share = (name: string, salt: string): number => {
  let hash = 2166136261;
  for (const character of name + salt) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
  return (hash >>> 0) / 2 ** 32;
};

const statusOf = (entry: NodeRuntime["spec"]["profiles"][number], works: boolean): ProfileStatus => ({
  name: entry.name,
  phase: works ? "Ready" : "Failed",
  revision: works ? entry.revision : "",
  ...(works ? {} : { attemptedRevision: entry.revision }),
  reason: works ? "CanaryPassed" : "CanaryFailed",
  message: works ? "" : "simulated: kernel-differs: the kernel is the node's",
  canary: {
    passed: works,
    at: new Date().toISOString(),
    startSeconds: 0.6,
    kernel: "4.19.0-gvisor",
    assertions: ["kernel-differs", "own-pid-namespace", "own-net-namespace"],
    failures: works ? 0 : 1,
  },
  startSeconds: { p50: 0.6, p99: 0.9 },
  pods: { "tenant-a": 2, "tenant-b": 1 },
});

export const createAgents = (client: Client, habits: Habits): Agents => {
  const reflector = createReflector<NodeRuntime>({ client, resource: nodeRuntimes });
  let [last, writes] = [0, 0];
  const timers = new Map<string, NodeJS.Timeout>();
  const tried = new Set<string>();
  let stopped: AbortSignal | undefined;

  const report = async (name: string, works: boolean): Promise<void> => {
    const runtime = reflector.store.get(name);
    if (!runtime || stopped?.aborted) return;
    const { spec, metadata } = runtime;
    await client.applyStatus(
      nodeRuntimes,
      {
        metadata: { name },
        status: {
          observedGeneration: metadata.generation,
          heartbeat: new Date().toISOString(),
          engine: {
            name: "containerd",
            version: "2.4.2",
            socket: "/run/containerd/containerd.sock",
            fronted: true,
          },
          kernel: "6.1.0-18-amd64",
          arch: "amd64",
          cgroup: "v2",
          kvm: false,
          agentVersion: "0.1.0",
          runtimeVersion: "0.1.0",
          ready: `${works ? spec.profiles.length : 0}/${spec.profiles.length}`,
          profiles: spec.profiles.map((entry) => statusOf(entry, works)),
        },
      },
      { fieldManager: "bulkhead-agent", force: true },
    );
    writes++;
    last = Date.now();
  };

  const later = (name: string, ms: number, works: boolean): void => {
    clearTimeout(timers.get(name));
    const timer = setTimeout(() => {
      timers.delete(name);
      report(name, works).then(
        () => {
          if (!works) later(name, 5000, true);
        },
        // As the real one: it tries again.
        () => later(name, 2000, works),
      );
    }, ms);
    timers.set(name, timer);
  };

  reflector.on((change) => {
    const { object } = change;
    const { name, generation } = object.metadata;
    if (change.type === "deleted" || object.status?.observedGeneration === generation) return;
    const key = `${name} ${generation}`;
    if (tried.has(key)) return;
    tried.add(key);
    const { median, longest } = habits.seconds;
    const slow = share(name, `${generation}slow`);
    const seconds = slow > 0.999 ? longest : median * (0.5 + slow);
    later(name, seconds * 1000, share(name, `${generation}fails`) >= habits.failAtFirst);
  });

  return {
    lastAnswer: () => last,
    writes: () => writes,
    waiting: () => timers.size,
    synced: reflector.synced,
    run: async (signal) => {
      stopped = signal;
      let turn = 0;
      // Heartbeats spread over their interval: every node's own second of it.
      const beats = setInterval(() => {
        turn = (turn + 1) % habits.heartbeatSeconds;
        for (const { metadata } of reflector.store.list()) {
          const { name } = metadata;
          if (Math.floor(share(name, "beat") * habits.heartbeatSeconds) !== turn || timers.has(name))
            continue;
          const flaps = share(name, "flaps") < habits.flap && Math.random() < 0.5;
          const beat = flaps
            ? report(name, false).then(() => later(name, 5000, true))
            : client.patch(
                nodeRuntimes,
                name,
                { status: { heartbeat: new Date().toISOString() } },
                { subresource: "status", fieldManager: "bulkhead-agent" },
              );
          beat.then(() => writes++).catch(() => {});
        }
      }, 1000);
      try {
        await reflector.run(signal);
      } finally {
        clearInterval(beats);
        for (const timer of timers.values()) clearTimeout(timer);
      }
    },
  };
};
