import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, profileReady } from "../cluster/bulkhead.ts";
import type { Cluster, Node } from "../cluster/cluster.ts";
import { clampedGvisor } from "../engines/clamped.ts";
import { eventually } from "../lifecycle/life.ts";
import { first, inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { nodeRuntime } from "./agent.ts";

/**
 * `engine: node` from kubectl to pod: the node's own containerd gets a handler of gVisor, by an artifact. The tests
 * stand on each other in this order.
 */

let cluster: Cluster;
let node: Node;
let ns: Namespace;
let image: string;
let artifact: string;
/** What stands in the node's root. */
let root: string;
const entries = () => node.exec(["ls", "-A", "/"]);
const name = "on-containerd";
const dropin = "/etc/containerd/conf.d/zz-bulkhead.toml";

const statusOf = async (): Promise<ProfileStatus | undefined> =>
  (await nodeRuntime(cluster, node.name)).status?.profiles?.find((each) => each.name === name);
/** A container's id, its restarts and when its process began: what a restart of the engine must not change. */
const life = async (pod: string): Promise<unknown> => {
  const status = first(await ns.get(pod));
  return [
    status?.containerID,
    status?.restartCount,
    await ns.exec(pod, "cut", "-d ", "-f22", "/proc/1/stat"),
  ];
};

beforeAll(async () => {
  cluster = await bulkheadCluster();
  node = cluster.node("node-1");
  root = await entries();
  ns = inNamespace(cluster, "node-engine");
  await ns.create();
  image = `${cluster.registry}/bulkhead/test:1`;
  artifact = await clampedGvisor(cluster.registry);
  await ns.run(podOf("beside", undefined, image, {}, { nodeName: node.name }));
});
afterAll(async () => {
  await ns?.destroy();
  await cluster?.kubectl(["delete", "rtp", name, "--ignore-not-found", "--timeout=90s"]);
});

describe("A profile of the node's own engine", () => {
  test("is Ready, its canary behind gVisor's kernel, and containerd's pods do not notice", async () => {
    const before = await life("beside");
    const spec = {
      handler: { gvisor: { platform: "systrap" } },
      engine: "node",
      artifact: { image: artifact },
      nodeSelector: { "kubernetes.io/hostname": node.name },
    };
    const profile = { apiVersion: "bulkhead.dev/v1alpha1", kind: "RuntimeProfile", metadata: { name }, spec };
    await cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(profile) });
    await profileReady(cluster, name);
    expect((await statusOf())?.canary).toMatchObject({
      passed: true,
      assertions: expect.arrayContaining(["kernel-differs"]),
    });
    expect(await node.readFile(dropin)).toContain(artifact.slice(-64));
    expect(await node.exec(["containerd", "config", "dump"])).toContain(`runtimes.${name}`);
    expect(await life("beside")).toEqual(before);
  });

  test("runs a pod of its class behind that kernel: its log, exec and network", async () => {
    const command = ["sh", "-c", "echo here I am; httpd -f -p 8080 -h /etc"];
    const pod = await ns.run(podOf("walled", name, image, { command }, { nodeName: node.name }));
    expect(await ns.exec("walled", "dmesg")).toContain("gVisor");
    expect(await ns.exec("beside", "uname", "-r")).not.toBe(await ns.exec("walled", "uname", "-r"));
    expect(await ns.kubectl(["logs", "walled"])).toBe("here I am\n");
    expect(await ns.exec("beside", "wget", "-qO-", `http://${pod.status.podIP}:8080/passwd`)).toContain(
      "root",
    );
    const id = first(pod)?.containerID.replace(/^.*:\/\//, "") ?? "";
    expect(await node.exec(["ctr", "-n", "k8s.io", "containers", "ls", "-q"])).toContain(id);
  });

  test("waits for its pods when it is deleted, and takes all of it away then", async () => {
    const before = await life("beside");
    await cluster.kubectl(["delete", "rtp", name, "--wait=false"]);
    await eventually(async () => {
      const { status } = JSON.parse(await cluster.kubectl(["get", "rtp", name, "-o", "json"])) as {
        status: { conditions: { type: string; reason: string; message: string }[] };
      };
      expect(status.conditions.find(({ type }) => type === "Progressing")).toMatchObject({
        reason: "InUse",
        message: expect.stringContaining("node-engine/walled"),
      });
    });
    expect(await ns.exec("walled", "echo", "still here")).toBe("still here\n");
    await ns.remove("walled");
    await cluster.kubectl(["wait", "--for=delete", `rtp/${name}`, "--timeout=60s"]);
    expect((await node.try(["cat", dropin])).code).not.toBe(0);
    await eventually(async () =>
      expect((await node.try(["ls", `/opt/bulkhead/artifacts/${artifact.slice(-64)}`])).code).not.toBe(0),
    );
    expect(await node.exec(["containerd", "config", "dump"])).not.toContain(name);
    await eventually(async () => expect(await life("beside")).toEqual(before), 30);
    // The kubelet may have been there before the agent when a canary ended (LogDirectory, node-agent/src/probe).
    expect(await entries()).toBe(root);
  });
});
