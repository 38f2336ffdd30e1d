import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { isDeepStrictEqual } from "node:util";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { ensureTestImages } from "../images/build.ts";
import { inCache, tool } from "../tools/cache.ts";
import { debianProgram, debianPrograms } from "../tools/debian.ts";
import { chosenVersions } from "../tools/kubernetes.ts";
import { type Outcome, type RunOptions, run } from "../tools/run.ts";
import { get } from "./api.ts";
import { kubeconfig, makeCertificates, pki } from "./certificates.ts";
import {
  type Component,
  components,
  controlPlane,
  healthUrl,
  logOf,
  registryConfig,
} from "./control-plane.ts";
import type { ClusterDescription } from "./description.ts";
import { removeCgroups, unmountBelow } from "./mounts.ts";
import { makeBridge, removeBridge } from "./network.ts";
import { bootNode, copyToNode, execOnNode, haltNode, nodeState, shellOnNode } from "./node.ts";
import { apiUrl, type ClusterPlan, type NodePlan, registryHost } from "./plan.ts";
import { type ClusterProcess, clusterProcesses, endProcesses, startDaemon } from "./process.ts";
import { createRecord, isStale, lock, planOf, readRecord, removeRecord } from "./record.ts";

/** Told the name of each part of the work as it begins; disposed of when it is done. */
export type Progress = <T>(title: string, work: () => Promise<T>) => Promise<T>;

const quiet: Progress = (_title, work) => work();

/** A node of a running cluster. */
export type Node = {
  readonly name: string;
  readonly address: string;
  readonly plan: NodePlan;
  /** Runs a program on the node; it must succeed. Returns its stdout. */
  exec(argv: readonly string[], options?: RunOptions): Promise<string>;
  /** Runs a program on the node, however it ends. */
  try(argv: readonly string[], options?: RunOptions): Promise<Outcome>;
  /** A shell, or `argv`, on this terminal. */
  shell(argv?: readonly string[]): Promise<number>;
  /** Whether the node's container runs. */
  running(): Promise<boolean>;
  /** The node's process of this program, as this machine's pid: for signals. */
  kill(unit: string, signal?: string): Promise<void>;
  /** Ends the node at once, as a power cut does. Its disk stays. */
  stop(): Promise<void>;
  /** Boots a node that was stopped, on its disk, and waits until it is Ready. */
  start(): Promise<void>;
  /** stop() and start(). */
  restart(): Promise<void>;
  copyTo(from: string, to: string): Promise<void>;
  readFile(path: string): Promise<string>;
  /** Waits until the API server says that the node is Ready. */
  ready(signal?: AbortSignal): Promise<void>;
};

/** A running cluster. */
export type Cluster = {
  readonly name: string;
  readonly plan: ClusterPlan;
  readonly kubeconfig: string;
  /** Host and port of the registry, as image names begin with. Plain HTTP. */
  readonly registry: string;
  readonly nodes: readonly Node[];
  /** A node by name. */
  node(name: string): Node;
  /** Runs kubectl; it must succeed. Returns its stdout. `input` is what `-f -` reads. */
  kubectl(argv: readonly string[], options?: RunOptions): Promise<string>;
  helm(argv: readonly string[], options?: RunOptions): Promise<string>;
  /** Ends a process of the control plane with SIGKILL and starts it again: etcd, kube-apiserver, … */
  restartComponent(component: Component): Promise<void>;
  /** The processes of the cluster on this machine. */
  processes(): Promise<ClusterProcess[]>;
  /** Takes everything away: see {@link stopCluster}. */
  down(): Promise<void>;
};

/**
 * Starts the cluster of a description, or finds it running and mends what is not. It outlives this process.
 * When it fails or `signal` aborts before a new cluster is up, all of it is taken away again.
 */
export const startCluster = async (
  asked: ClusterDescription,
  options: { signal?: AbortSignal; progress?: Progress } = {},
): Promise<Cluster> => {
  // It keeps its versions, whoever opens it later.
  const description = { kubernetes: chosenVersions(), ...asked };
  const signal = options.signal ?? new AbortController().signal;
  const progress = options.progress ?? quiet;
  await using _held = await lock(description.name, signal);
  const found = await readRecord(description.name);
  if (found !== undefined) {
    if (!(await isStale(found)) && isDeepStrictEqual(found.description, plain(description)))
      return mend(planOf(found), signal, progress);
    await progress("take the earlier cluster down", () => removeAll(planOf(found), found));
  }
  const record = await (async () => {
    await using _slots = await lock("slots", signal);
    return createRecord(description);
  })();
  await using undo = new AsyncDisposableStack();
  undo.defer(() => removeAll(planOf(record), record));
  const cluster = await mend(planOf(record), signal, progress);
  undo.move();
  return cluster;
};

/** What a description looks like after it was written to a file. */
const plain = (description: ClusterDescription): unknown => JSON.parse(JSON.stringify(description));

/** The cluster of that name that was started before. It must be there; whether it is well, nobody asks. */
export const openCluster = async (name: string): Promise<Cluster> => {
  const record = await readRecord(name);
  if (record === undefined || (await isStale(record)))
    throw new RuntimeError("not-found", `Cannot find cluster "${name}": start it with ./dev up`);
  return clusterOf(planOf(record));
};

/**
 * Takes a cluster away, however it came to be what it is: processes, nodes, mounts, cgroups, interfaces, files.
 * Does nothing when there is none.
 */
export const stopCluster = async (name: string, signal = new AbortController().signal): Promise<boolean> => {
  await using _held = await lock(name, signal);
  const record = await readRecord(name);
  if (record === undefined) return false;
  await removeAll(planOf(record), record);
  return true;
};

const removeAll = async (plan: ClusterPlan, record: Parameters<typeof removeRecord>[0]): Promise<void> => {
  // The nodes go first: nothing is left to complain that the control plane is gone.
  await Promise.all(plan.nodes.map((node) => haltNode(plan, node)));
  await endProcesses(await clusterProcesses(plan.name), 0);
  await removeBridge(plan);
  await unmountBelow(plan.run);
  await removeCgroups(plan.cgroup);
  await removeRecord(record);
};

/** Starts what does not run, then waits until all is well. On a new cluster that is everything. */
const mend = async (plan: ClusterPlan, signal: AbortSignal, progress: Progress): Promise<Cluster> => {
  await mkdir(`${plan.disk}/logs`, { recursive: true });
  await mkdir(inCache("registry"), { recursive: true });
  const [etcd, registry] = await Promise.all(
    [debianPrograms.etcd, debianPrograms["docker-registry"]].map(({ pkg, path }) =>
      debianProgram(pkg, path, signal),
    ),
  );
  await makeCertificates(plan, signal);
  await writeKubeconfigs(plan);
  await writeFile(`${plan.disk}/registry.yml`, registryConfig(plan, inCache("registry")));
  await makeBridge(plan, signal);
  const cluster = clusterOf(plan);
  const daemons = controlPlane(plan, { etcd: etcd!, registry: registry! });
  const running = new Set((await cluster.processes()).map((each) => each.component));
  const start = async (component: Component, signal: AbortSignal): Promise<void> => {
    signal.throwIfAborted();
    if (!running.has(component)) await startDaemon(plan.name, daemons[component]);
    await well(plan, component, signal);
  };
  const registryUp = start("registry", signal);
  // Whoever waits for it tells.
  registryUp.catch(() => {});
  await all(signal, (signal) => [
    progress("control plane", async () => {
      await start("etcd", signal);
      await start("kube-apiserver", signal);
      await Promise.all([start("kube-controller-manager", signal), start("kube-scheduler", signal)]);
      await until(signal, 60_000, "the default service account", async () => {
        const { status } = await get(
          plan,
          `${apiUrl(plan)}/api/v1/namespaces/default/serviceaccounts/default`,
        );
        return status === 200;
      });
    }),
    progress("registry", async () => {
      await registryUp;
      // What every pod on containerd stands on, and what demonstrations and tests run in it.
      await ensureTestImages(registryHost(plan), ["pause:latest", "bulkhead/test:1"]);
    }),
    ...cluster.nodes.map((node) =>
      progress(`node ${node.name}`, async () => {
        // Bulkhead's own images come from there.
        if (node.plan.description.engine === "bulkhead") await registryUp;
        if (!(await node.running())) await bootNode(plan, node.plan, signal);
        await node.ready(signal);
        await label(cluster, node);
      }),
    ),
  ]);
  return cluster;
};

/**
 * Like Promise.all, but the first failure aborts the others and none is left running behind the caller's back: what
 * comes next may be an undo.
 */
const all = async (
  signal: AbortSignal,
  works: (signal: AbortSignal) => readonly Promise<unknown>[],
): Promise<void> => {
  const failed = new AbortController();
  const results = await Promise.allSettled(
    works(AbortSignal.any([signal, failed.signal])).map((work) =>
      work.catch((error: unknown) => {
        failed.abort(error);
        throw error;
      }),
    ),
  );
  signal.throwIfAborted();
  if (results.some((result) => result.status === "rejected")) throw failed.signal.reason;
};

/** NodeRestriction keeps kubelet from setting most labels: the administrator does. */
const label = async (cluster: Cluster, node: Node): Promise<void> => {
  const labels = Object.entries(node.plan.description.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  if (labels.length > 0) await cluster.kubectl(["label", "node", node.name, "--overwrite", ...labels]);
};

const writeKubeconfigs = async (plan: ClusterPlan): Promise<void> => {
  const at = pki(plan);
  const ca = await readFile(at.ca.cert, "utf8");
  const users = {
    admin: { path: kubeconfigPath(plan), pair: at.admin },
    "kube-controller-manager": {
      path: `${plan.disk}/controller-manager.kubeconfig`,
      pair: at.controllerManager,
    },
    "kube-scheduler": { path: `${plan.disk}/scheduler.kubeconfig`, pair: at.scheduler },
  };
  for (const [user, { path, pair }] of Object.entries(users)) {
    const [cert, key] = await Promise.all([readFile(pair.cert, "utf8"), readFile(pair.key, "utf8")]);
    await writeFile(path, kubeconfig(plan, user, { ca, cert, key }), { mode: 0o600 });
  }
};

const kubeconfigPath = (plan: ClusterPlan): string => `${plan.disk}/kubeconfig`;

const clusterOf = (plan: ClusterPlan): Cluster => {
  const env = {
    KUBECONFIG: kubeconfigPath(plan),
    HELM_CACHE_HOME: `${plan.disk}/helm/cache`,
    HELM_CONFIG_HOME: `${plan.disk}/helm/config`,
    HELM_DATA_HOME: `${plan.disk}/helm/data`,
  };
  const nodes = plan.nodes.map((node) => nodeOf(plan, node));
  return {
    name: plan.name,
    plan,
    kubeconfig: env.KUBECONFIG,
    registry: registryHost(plan),
    nodes,
    node: (name) => {
      const node = nodes.find((each) => each.name === name);
      if (node !== undefined) return node;
      throw new RuntimeError("not-found", `Cannot find node "${name}" in cluster "${plan.name}"`);
    },
    kubectl: (argv, options = {}) =>
      run([tool("kubectl"), ...argv], { ...options, env: { ...env, ...options.env } }),
    helm: (argv, options = {}) =>
      run([tool("helm"), ...argv], { ...options, env: { ...env, ...options.env } }),
    processes: () => clusterProcesses(plan.name),
    restartComponent: async (component) => {
      const all = await clusterProcesses(plan.name);
      await endProcesses(
        all.filter((each) => each.component === component),
        0,
      );
      const programs = await Promise.all(
        [debianPrograms.etcd, debianPrograms["docker-registry"]].map(({ pkg, path }) =>
          debianProgram(pkg, path),
        ),
      );
      await startDaemon(
        plan.name,
        controlPlane(plan, { etcd: programs[0]!, registry: programs[1]! })[component],
      );
      await well(plan, component, new AbortController().signal);
    },
    down: async () => {
      await stopCluster(plan.name);
    },
  };
};

const nodeOf = (plan: ClusterPlan, node: NodePlan): Node => {
  const tryExec: Node["try"] = (argv, options) => execOnNode(plan, node, argv, options);
  const exec: Node["exec"] = async (argv, options) => {
    const { code, stdout, stderr } = await tryExec(argv, options);
    if (code === 0) return stdout;
    throw new RuntimeError(
      "unknown",
      `Cannot run "${argv.join(" ")}" on ${node.name}: exit code ${code}\n${stderr.trim() || stdout.trim()}`,
    );
  };
  const ready = (signal = new AbortController().signal): Promise<void> =>
    until(signal, 120_000, `node ${node.name} to be Ready`, async () => {
      const { status, body } = await get(plan, `${apiUrl(plan)}/api/v1/nodes/${node.name}`);
      return status === 200 && isReady(JSON.parse(body), await bootTime(node));
    });
  const stop = (): Promise<void> => haltNode(plan, node);
  const start = async (): Promise<void> => {
    const signal = new AbortController().signal;
    await bootNode(plan, node, signal);
    await ready(signal);
  };
  return {
    name: node.name,
    address: node.address,
    plan: node,
    try: tryExec,
    exec,
    shell: (argv = ["bash", "-l"]) => shellOnNode(plan, node, argv),
    running: async () => (await nodeState(plan, node))?.status === "running",
    kill: async (unit, signal = "KILL") => {
      await exec(["systemctl", "kill", "--kill-whom=main", `--signal=${signal}`, unit]);
    },
    stop,
    start,
    restart: async () => {
      await stop();
      await start();
    },
    copyTo: (from, to) => copyToNode(node, from, to),
    readFile: (path) => readFile(`${node.run}/rootfs${path}`, "utf8"),
    ready,
  };
};

type NodeObject = { status?: { conditions?: { type: string; status: string; lastHeartbeatTime: string }[] } };

/** Ready by a heartbeat of this boot: what kubelet said before a restart does not count. */
const isReady = (node: NodeObject, boot: number): boolean =>
  node.status?.conditions?.some(
    ({ type, status, lastHeartbeatTime }) =>
      type === "Ready" && status === "True" && Date.parse(lastHeartbeatTime) >= boot,
  ) ?? false;

/** When the node booted, to the second that heartbeats are written in. */
const bootTime = async (node: NodePlan): Promise<number> => {
  const { mtimeMs } = await stat(`${node.run}/pid`);
  return Math.floor(mtimeMs / 1000) * 1000;
};

/** Waits until a component says that it is well. */
export const well = (plan: ClusterPlan, component: Component, signal: AbortSignal): Promise<void> =>
  until(signal, 90_000, `${component} (log: ${logOf(plan, component)})`, async () => {
    const { status } = await get(plan, healthUrl(plan, component));
    return status === 200;
  });

/** Asks again and again until the answer is yes. An error is a no, and is told when time is up. */
export const until = async (
  signal: AbortSignal,
  ms: number,
  what: string,
  ask: () => Promise<boolean>,
): Promise<void> => {
  const end = Date.now() + ms;
  for (let last = "no"; ; ) {
    signal.throwIfAborted();
    try {
      if (await ask()) return;
    } catch (error) {
      last = messageOf(error);
    }
    if (Date.now() > end)
      throw new RuntimeError(
        "deadline-exceeded",
        `Cannot wait longer for ${what}: ${ms / 1000} s passed (${last})`,
      );
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
};

export { type Component, components };
