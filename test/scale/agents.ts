import { fieldManager, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime, ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import type { Client } from "@bulkhead/lib/kube/client.ts";
import { leases, microTime } from "@bulkhead/lib/kube/lease.ts";
import type { KubeObject, Resource } from "@bulkhead/lib/kube/object.ts";
import { createReflector } from "@bulkhead/lib/kube/reflector.ts";
import { nodeRuntimes, nodes } from "@bulkhead/lib/kube/resources.ts";
import type { Store } from "@bulkhead/lib/kube/store.ts";
import { hasCode } from "@bulkhead/lib/std/errors.ts";

/**
 * A fake of thousands of nodes, in one process: each agent sees its NodeRuntime, takes its time, and reports as the real
 * reporter does. Some take long, some fail at first, some report a canary that fails and passes again. Their kubelets
 * touch the Node's status, as kubelets do.
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
  /** NodeRuntimes as they see them: of status only which spec it answers. */
  runtimes: Store<NodeRuntime>;
  /** When the last agent answered a change of its spec. */
  lastAnswer(): number;
  /** Status writes so far, by what they were. */
  writes(): { answers: number; heartbeats: number; sameAgain: number; flaps: number; kubelets: number };
  /** Specs seen and not answered yet. */
  waiting(): number;
  /** How far they are, for who waits. */
  progress(): {
    /** Nodes whose agent has answered the spec as it is. */
    answered: number;
    /** Answers and signs of life that wait for a turn, and how long the eldest under way takes. */
    queued: number;
    eldestMs: number;
  };
  run(signal: AbortSignal): Promise<void>;
  synced: Promise<void>;
};

/** A number in [0, 1) that is a node's own, so that a run can be repeated. */
const share = (name: string, salt: string): number => {
  let hash = 2166136261;
  for (const character of name + salt) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
  return (hash >>> 0) / 2 ** 32;
};

type Entry = NodeRuntime["spec"]["profiles"][number];

const statusOf = ({ name, revision }: Entry, works: boolean): ProfileStatus => ({
  name,
  phase: works ? "Ready" : "Failed",
  revision: works ? revision : "",
  ...(works ? { readySince: new Date().toISOString() } : {}),
  ...(works ? {} : { attemptedRevision: revision }),
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

/** Ten thousand NodeRuntimes must not need the memory that the operator is to be measured in. */
const slim = ({ apiVersion, kind, metadata, spec, status }: NodeRuntime): NodeRuntime => ({
  apiVersion,
  kind,
  metadata: {
    name: metadata.name,
    ...(metadata.uid ? { uid: metadata.uid } : {}),
    ...(metadata.generation === undefined ? {} : { generation: metadata.generation }),
    ...(metadata.resourceVersion ? { resourceVersion: metadata.resourceVersion } : {}),
  },
  spec: { profiles: spec.profiles.map(({ name, revision }) => ({ name, revision }) as Entry) },
  status: {
    ...(status?.observedGeneration === undefined ? {} : { observedGeneration: status.observedGeneration }),
    ...(status?.heartbeat === undefined ? {} : { heartbeat: status.heartbeat }),
  },
});

/** At most so many at a time, the others in order. */
const limiter = (most: number) => {
  let running = 0;
  const queue: (() => void)[] = [];
  const begun = new Set<number>();
  const run = async <T>(work: () => Promise<T>): Promise<T> => {
    if (running < most) running++;
    else await new Promise<void>((resolve) => queue.push(resolve));
    const at = performance.now();
    begun.add(at);
    try {
      return await work();
    } finally {
      begun.delete(at);
      const next = queue.shift();
      if (next) next();
      else running--;
    }
  };
  return {
    run,
    queued: () => queue.length,
    eldestMs: () => (begun.size === 0 ? 0 : performance.now() - Math.min(...begun)),
  };
};

const fullNodes: Resource<KubeObject> = { ...nodes, metadataOnly: false };

export const createAgents = (client: Client, namespace: string, habits: Habits): Agents => {
  const reflector = createReflector<NodeRuntime>({
    client,
    resource: nodeRuntimes,
    transform: slim,
    pageSize: 100,
  });
  // Not more at once than a small API server does within a second: the Lease waits behind them.
  const limited = limiter(8);
  // Nodes are apart from each other: signs of life and answers do not wait for one another, as they would in one line.
  const signs = limiter(64);
  const kubelets = limiter(4);
  const writes = { answers: 0, heartbeats: 0, sameAgain: 0, flaps: 0, kubelets: 0 };
  let last = 0;
  const timers = new Map<string, NodeJS.Timeout>();
  const tried = new Map<string, number>();
  let stopped: AbortSignal | undefined;

  const report = async (name: string, works: boolean, as: "answers" | "sameAgain" | "flaps") => {
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
    writes[as]++;
    if (as === "answers") last = Date.now();
  };

  const later = (name: string, ms: number, works: boolean): void => {
    clearTimeout(timers.get(name));
    const timer = setTimeout(() => {
      timers.delete(name);
      limited
        .run(() => report(name, works, "answers"))
        .then(
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
    const { name, generation = 0 } = object.metadata;
    if (change.type === "deleted" || object.status?.observedGeneration === generation) return;
    if (tried.get(name) === generation) return;
    tried.set(name, generation);
    const { median, longest } = habits.seconds;
    const slow = share(name, `${generation}slow`);
    const seconds = slow > 0.999 ? longest : median * (0.5 + slow);
    later(name, seconds * 1000, share(name, `${generation}fails`) >= habits.failAtFirst);
  });

  /** By a Lease, as the real one: it makes what is not there. */
  const sign = async (name: string, uid: string): Promise<void> => {
    const metadata = {
      labels: { [labels.managedBy]: fieldManager.agent },
      ownerReferences: [{ apiVersion: nodeRuntimes.apiVersion, kind: nodeRuntimes.kind, name, uid }],
    };
    const spec = { holderIdentity: name, renewTime: microTime(Date.now()) };
    const how = { fieldManager: fieldManager.agent };
    try {
      await client.patch(leases, name, { metadata, spec }, { namespace, ...how });
    } catch (error) {
      if (!hasCode(error, "not-found")) throw error;
      await client.create(leases, { metadata: { name, namespace, ...metadata }, spec }, how);
    }
    writes.heartbeats++;
  };

  /** What a node has under way: what takes longer than its interval is not begun once more. */
  const pending = new Set<string>();
  const once = (key: string, by: ReturnType<typeof limiter>, work: () => Promise<unknown>): void => {
    if (pending.has(key)) return;
    pending.add(key);
    by.run(work)
      .catch(() => {})
      .finally(() => pending.delete(key));
  };

  /** One node's turn: it says that it lives; now and then all of the same again, as after many canaries. */
  const beat = ({ metadata, status }: NodeRuntime, round: number): void => {
    const { name, uid = "", generation } = metadata;
    once(`sign ${name}`, signs, () => sign(name, uid));
    const turn = (round + Math.floor(share(name, "turn") * 10)) % 10;
    if (turn === 1)
      once(`kubelet ${name}`, kubelets, async () => {
        const conditions = [{ type: "Ready", status: "True", lastHeartbeatTime: new Date().toISOString() }];
        await client.patch(fullNodes, name, { status: { conditions } }, { subresource: "status" });
        writes.kubelets++;
      });
    if (turn !== 0 || timers.has(name) || status?.observedGeneration !== generation) return;
    const flaps = share(name, "flaps") < habits.flap;
    once(`report ${name}`, limited, async () => {
      await report(name, !flaps, flaps ? "flaps" : "sameAgain");
      if (flaps) later(name, 5000, true);
    });
  };

  return {
    runtimes: reflector.store,
    lastAnswer: () => last,
    writes: () => ({ ...writes }),
    waiting: () => timers.size,
    progress: () => {
      const all = [...reflector.store.list()];
      return {
        answered: all.filter(({ metadata, status }) => status?.observedGeneration === metadata.generation)
          .length,
        queued: limited.queued() + signs.queued() + kubelets.queued(),
        eldestMs: Math.max(limited.eldestMs(), signs.eldestMs()),
      };
    },
    synced: reflector.synced,
    run: async (signal) => {
      stopped = signal;
      let second = 0;
      // Spread over the interval: every node's own second of it.
      const beats = setInterval(() => {
        second++;
        const round = Math.floor(second / habits.heartbeatSeconds);
        for (const runtime of reflector.store.list()) {
          const own = Math.floor(share(runtime.metadata.name, "beat") * habits.heartbeatSeconds);
          // Who has never reported anything has no Lease either.
          if (own === second % habits.heartbeatSeconds && runtime.status?.heartbeat) beat(runtime, round);
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
