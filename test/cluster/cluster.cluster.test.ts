import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { chosenVersions, kubernetesVersions } from "../tools/kubernetes.ts";
import { outcome } from "../tools/run.ts";
import { type Cluster, openCluster, startCluster, stopCluster, until } from "./cluster.ts";
import { defaultDescription } from "./description.ts";
import { cgroupDirs, mountsBelow } from "./mounts.ts";
import { clusterProcesses } from "./process.ts";
import { readSysctls } from "./sysctls.ts";

/** The test estate itself: these start a cluster of their own, since they break it. */

const description = {
  name: "estate",
  nodes: [
    { name: "left", engine: "containerd", labels: { side: "left" } },
    { name: "right", engine: "containerd", labels: { side: "right" }, kubelet: { maxPods: 7 } },
  ],
} as const;

let cluster: Cluster;
let image: string;

const pod = (name: string, node: string, spec: object = {}) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name },
  spec: {
    nodeName: node,
    terminationGracePeriodSeconds: 0,
    containers: [{ name: "main", image, command: ["httpd", "-f", "-p", "8080", "-h", "/etc"] }],
    ...spec,
  },
});
const apply = (object: object) => cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(object) });
const podIp = (name: string) => cluster.kubectl(["get", "pod", name, "-o", "jsonpath={.status.podIP}"]);
const podReady = (name: string) =>
  cluster.kubectl(["wait", "--for=condition=Ready", `pod/${name}`, "--timeout=90s"]);
const exec = (name: string, ...argv: string[]) => cluster.kubectl(["exec", name, "--", ...argv]);

beforeAll(async () => {
  cluster = await startCluster(description);
  image = (await ensureTestImages(cluster.registry)).test;
  for (const node of ["left", "right"]) await apply(pod(node, node));
  for (const node of ["left", "right"]) await podReady(node);
});
afterAll(async () => {
  await stopCluster(description.name);
});

describe("A cluster", () => {
  test("has the nodes, kubelet settings and labels of its description", async () => {
    const { items } = JSON.parse(await cluster.kubectl(["get", "nodes", "-o", "json"])) as {
      items: { metadata: { name: string; labels: Record<string, string> }; status: NodeStatus }[];
    };
    expect(items.map((node) => [node.metadata.name, node.metadata.labels.side])).toEqual([
      ["left", "left"],
      ["right", "right"],
    ]);
    expect(items.map((node) => node.status.capacity.pods)).toEqual(["110", "7"]);
    for (const { status } of items) {
      expect(status.nodeInfo.kubeletVersion).toBe(kubernetesVersions[chosenVersions().kubelet]);
      expect(status.nodeInfo.containerRuntimeVersion).toMatch(/^containerd:\/\/2\.4\.2/);
    }
  });

  test("lets pods on two nodes reach each other", async () => {
    await exec("left", "ping", "-c", "1", "-W", "2", await podIp("right"));
    await exec("right", "ping", "-c", "1", "-W", "2", await podIp("left"));
  });

  test("lets this machine reach pods", async () => {
    const answer = await fetch(`http://${await podIp("right")}:8080/hostname`);
    expect(await answer.text()).toBe("right\n");
  });

  test("gives pods the API server under the address of its Service", async () => {
    const address = await exec("left", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT");
    expect(address.trim()).toBe("10.96.0.1:443");
    // It answers what is not TLS, too: with a refusal that says so.
    const request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 10.96.0.1 443";
    expect(await exec("left", "sh", "-c", request)).toContain("400 Bad Request");
    await cluster.node("left").exec(["timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/10.96.0.1/443"]);
  });

  test("admits pods by RuntimeClass and keeps a kubelet to its own node", async () => {
    const left = ["--as=system:node:left", "--as-group=system:nodes"];
    await expect(cluster.kubectl(["get", "node", "right", ...left])).rejects.toThrow(
      /only its own Node object/,
    );
    const restricted = "node-restriction.kubernetes.io/tier=mine";
    await expect(cluster.kubectl(["label", "node", "left", restricted, ...left])).rejects.toThrow(
      /is not allowed to modify labels/,
    );
    const classless = apply({ ...pod("classless", "left", { runtimeClassName: "none-such" }) });
    await expect(classless).rejects.toThrow(/RuntimeClass.*none-such.*not found/);
  });

  test("runs nodes whose systemd has nothing to complain of", async () => {
    for (const node of cluster.nodes) {
      await until(AbortSignal.timeout(30_000), 30_000, "systemd", async () => {
        const { stdout } = await node.try(["systemctl", "is-system-running"]);
        return stdout.trim() === "running";
      });
    }
  });

  test("is found again instead of started again", async () => {
    const before = await cluster.processes();
    const begun = Date.now();
    const again = await startCluster(description);
    expect(Date.now() - begun).toBeLessThan(15_000);
    expect(await again.processes()).toEqual(before);
    expect((await openCluster(description.name)).kubeconfig).toBe(cluster.kubeconfig);
  });

  test("gets back a component that was killed", async () => {
    await cluster.restartComponent("kube-apiserver");
    await exec("left", "sh", "-c", ":");
  });

  test("keeps a node's pods when its kubelet and its engine are killed", async () => {
    const started = "jsonpath={.status.containerStatuses[0].containerID}";
    const before = await cluster.kubectl(["get", "pod", "left", "-o", started]);
    const node = cluster.node("left");
    const engine = (await node.exec(["pidof", "containerd"])).trim();
    await node.kill("kubelet.service");
    await node.kill("containerd.service");
    await until(AbortSignal.timeout(30_000), 30_000, "containerd", async () => {
      const { stdout } = await node.try(["pidof", "containerd"]);
      return stdout.trim() !== "" && stdout.trim() !== engine;
    });
    await node.ready();
    await until(
      AbortSignal.timeout(60_000),
      60_000,
      "exec",
      async () => (await exec("left", "sh", "-c", ":")) === "",
    );
    expect(await cluster.kubectl(["get", "pod", "left", "-o", started])).toBe(before);
  });

  test("runs the pods of a node that was restarted again, with the node's disk as it was", async () => {
    const node = cluster.node("right");
    await node.exec(["sh", "-c", "echo kept > /root/note"]);
    await node.stop();
    expect(await node.running()).toBe(false);
    await node.start();
    expect(await node.readFile("/root/note")).toBe("kept\n");
    await until(AbortSignal.timeout(90_000), 90_000, "the pod", async () => {
      const count = "jsonpath={.status.containerStatuses[0].restartCount}";
      return (await cluster.kubectl(["get", "pod", "right", "-o", count])) === "1";
    });
    await podReady("right");
    await exec("left", "ping", "-c", "1", "-W", "2", await podIp("right"));
  });
});

describe("Taking a cluster down", () => {
  const name = "estate-down";
  const traces = async (plan: Cluster["plan"]) => ({
    processes: await clusterProcesses(name),
    mounts: await mountsBelow(plan.run),
    cgroups: await cgroupDirs(plan.cgroup),
    links: (await outcome(["ip", "-o", "link"])).stdout
      .split("\n")
      .filter((line) => new RegExp(`: ${plan.bridge}(n\\d+)?[@:]`).test(line)),
    routes: (await outcome(["ip", "route"])).stdout.split("\n").filter((line) => line.includes(plan.bridge)),
    rules: (await outcome(["iptables-save"])).stdout
      .split("\n")
      .filter((line) => line.includes(plan.address)),
    record: await readFile(`${plan.run}/record.json`, "utf8").catch(() => undefined),
  });
  const nothing = {
    processes: [],
    mounts: [],
    cgroups: [],
    links: [],
    routes: [],
    rules: [],
    record: undefined,
  };

  test("leaves no process, mount, cgroup, interface, route or rule, and the machine's settings as they were", async () => {
    const small = await startCluster(defaultDescription(name));
    expect((await traces(small.plan)).links).not.toEqual([]);
    expect(await stopCluster(name)).toBe(true);
    expect(await traces(small.plan)).toEqual(nothing);
    expect(await stopCluster(name)).toBe(false);
  });

  test.for([300, 1000, 2000])("cleans up what an abort after %i ms left", async (ms) => {
    // The clusters' own: tests of containers, which run beside these, make others.
    const bridges = async () =>
      (await outcome(["ip", "-o", "link", "show", "type", "bridge"])).stdout.match(/\bbhd\d+\b/g);
    const before = { sysctls: await readSysctls(), bridges: await bridges() };
    await expect(
      startCluster(defaultDescription(name), { signal: AbortSignal.timeout(ms) }),
    ).rejects.toThrow();
    // Whichever slot it had, only these two name it.
    const run = `/run/bulkhead-dev/${name}`;
    expect(
      await traces({
        ...cluster.plan,
        run,
        cgroup: `/bulkhead-dev/${name}`,
        bridge: "no-bridge",
        address: "no-address",
      }),
    ).toEqual(nothing);
    expect({ sysctls: await readSysctls(), bridges: await bridges() }).toEqual(before);
  });

  test("cleans up after a starter that was killed", async () => {
    const program = `
      import { startCluster } from "${import.meta.dirname}/cluster.ts";
      import { defaultDescription } from "${import.meta.dirname}/description.ts";
      setTimeout(() => process.kill(process.pid, "SIGKILL"), 1500);
      await startCluster(defaultDescription("${name}"));`;
    const { code } = await outcome([process.execPath, "--input-type=module", "--eval", program]);
    expect(code).toBe(137);
    const left = await openCluster(name);
    expect((await traces(left.plan)).processes).not.toEqual([]);
    expect(await stopCluster(name)).toBe(true);
    expect(await traces(left.plan)).toEqual(nothing);
  });
});

type NodeStatus = {
  capacity: { pods: string };
  nodeInfo: { kubeletVersion: string; containerRuntimeVersion: string };
};
