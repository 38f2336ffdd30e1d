import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { applyProfiles, installChart, namespace, profiles } from "../cluster/bulkhead.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";
import type { ClusterDescription } from "../cluster/description.ts";
import { pushImages } from "../cluster/push-images.ts";
import { ensureTestImages } from "../images/build.ts";
import { inNamespace, podOf } from "../pods/kube.ts";
import { type Lives, livesOf } from "../pods/lives.ts";

/** What the tests of Bulkhead's life on a node share: one cluster with one node, and how its life is told. */

/** A cluster of their own: these tests take Bulkhead away, and kill what others stand on. */
export const description: ClusterDescription = {
  name: "lifecycle",
  nodes: [{ name: "node-1", engine: "containerd" }],
};

/** The profiles that serve throughout. */
export const walls = profiles;

export type Condition = {
  type: string;
  status: string;
  reason: string;
  message: string;
  lastTransitionTime: string;
};
export type NodeProfile = {
  name: string;
  phase: string;
  reason: string;
  message: string;
  revision: string;
};

/** Asks until the check passes; when it never does, fails with its last words. */
export const eventually = async <T>(check: () => Promise<T>, seconds = 60): Promise<T> => {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > end) throw error;
      await sleep(300);
    }
  }
};

export const profileOf = (name: string, handler: object, rest: object = {}) => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name },
  spec: { handler, ...rest },
});

/** The cluster, a namespace in it, and what is asked of both. `await using` takes the namespace away. */
export type Life = Awaited<ReturnType<typeof openLife>>;

export const openLife = async (name: string) => {
  const cluster = await startCluster(description);
  const node = cluster.node("node-1");
  await ensureTestImages(`http://${cluster.registry}`, ["bulkhead/test:1"]);
  const image = `${cluster.registry}/bulkhead/test:1`;
  const ns = inNamespace(cluster, name);
  // What an earlier run that was cut off left.
  await cluster.kubectl(["delete", "namespace", name, "--ignore-not-found", "--wait=true"]);
  await ns.create();

  const get = async <T>(...argv: string[]): Promise<T> =>
    JSON.parse(await cluster.kubectl(["get", ...argv, "-o", "json"])) as T;
  const nodeProfile = async (profile: string): Promise<NodeProfile | undefined> => {
    const { status } = await get<{ status?: { profiles?: NodeProfile[] } }>("nrt", node.name);
    return status?.profiles?.find((each) => each.name === profile);
  };
  const condition = async (profile: string, type: string): Promise<Condition | undefined> => {
    const { status } = await get<{ status?: { conditions?: Condition[] } }>("rtp", profile);
    return status?.conditions?.find((each) => each.type === type);
  };
  const nodeReady = async (): Promise<Condition | undefined> => {
    const { status } = await get<{ status: { conditions: Condition[] } }>("node", node.name);
    return status.conditions.find(({ type }) => type === "Ready");
  };

  /** How many numbers stand in a pod's log. They are in order; a gap is an error, a repeated one is none under shims. */
  const numbersIn = async (pod: string): Promise<number> => {
    const numbers = (await ns.kubectl(["logs", pod])).trim().split("\n").map(Number);
    const repeats = pod.startsWith("sandboxed");
    const seen = repeats ? numbers.filter((n, at) => n !== numbers[at - 1]) : numbers;
    const gap = seen.findIndex((n, at) => n !== at);
    if (gap >= 0)
      throw new Error(`log of ${pod} at line ${gap}: ${seen.slice(Math.max(0, gap - 3), gap + 4)}`);
    return seen.length;
  };

  return {
    cluster,
    node,
    image,
    ns,
    get,
    nodeProfile,
    condition,
    nodeReady,
    lives: (prefix?: string): Promise<Lives> => livesOf(ns, [node], prefix),
    apply: (object: object) => cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(object) }),
    crictl: (...argv: string[]) =>
      node.exec(["crictl", "--runtime-endpoint=unix:///run/bulkhead/cri.sock", ...argv]),
    /** A pod that writes numbers without end, twenty a second: a line that is lost leaves a gap. */
    counter: (pod: string, wall?: string) => {
      const counting = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
      return podOf(pod, wall, image, { command: ["sh", "-c", counting] }, { restartPolicy: "Always" });
    },
    /** The pod's log is whole and grows: the container runs and its output arrives. */
    counts: async (pod: string): Promise<void> => {
      // While the kubelet or the runtime comes back, there is no log to be had. A gap stays one.
      const before = await eventually(() => numbersIn(pod), 20);
      await eventually(async () => expect(await numbersIn(pod)).toBeGreaterThan(before + 5), 20);
    },
    /** Starts a pod, says something in it and removes it. */
    tryPod: async (pod: string, wall?: string): Promise<void> => {
      await ns.run(podOf(pod, wall, image, { command: ["sh", "-c", "echo alive; sleep 1000"] }));
      expect(await ns.exec(pod, "echo", "hello")).toBe("hello\n");
      expect(await ns.kubectl(["logs", pod])).toBe("alive\n");
      await ns.remove(pod);
    },
    /** Bulkhead with its profiles, as the test cluster installs it; what is there already stays. */
    install: async (): Promise<void> => {
      await installChart(cluster, await pushImages(cluster.registry));
      await applyProfiles(cluster);
    },
    uninstall: async (): Promise<void> => {
      await cluster.helm(["uninstall", "bulkhead", "-n", namespace, "--wait", "--timeout", "4m"]);
      await cluster.kubectl(["delete", "namespace", namespace, "--timeout=60s"]);
    },
    isInstalled: async (): Promise<boolean> =>
      (await cluster.helm(["list", "-A", "-q"])).split("\n").includes("bulkhead"),
    [Symbol.asyncDispose]: async (): Promise<void> => {
      await ns.kubectl(["delete", "pods", "--all", "--grace-period=1", "--wait=true"]);
      await ns.destroy();
    },
  };
};

/** Where the chart's containers run, by the program that each runs: SIGKILL as the kernel gives it. */
export const killProgram = async (cluster: Cluster, program: "operator" | "reporter" | "installer") => {
  const script = `for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -qE '^/bundle/bin/node (--[^ ]+ )*/app/${program}.mjs' && kill -KILL \${p#/proc/} && echo killed; done; true`;
  return cluster.node("node-1").exec(["bash", "-c", script]);
};
