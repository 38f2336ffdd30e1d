import type { ProfileStatus } from "@bulkhead/lib/api/node-runtime.ts";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, profileReady } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, until } from "../cluster/cluster.ts";
import { inNamespace, type Namespace, podOf } from "../pods/kube.ts";
import { tool } from "../tools/cache.ts";
import { nodeRuntime } from "./agent.ts";

/**
 * `handler.shim`: a shim that Bulkhead knows nothing of (test/tools/containerd/unshare) becomes a RuntimeClass. The
 * tests stand on each other in this order.
 */

let cluster: Cluster;
let node: Node;
let ns: Namespace;
const name = "unshared";
const beside = "beside-unshared";
const binary = "/usr/local/bin/containerd-shim-unshare-v1";
const deadlines = { create: 300, start: 300, stop: 30 };
const profile = (options: object) => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name },
  spec: {
    handler: {
      shim: {
        runtimeType: "io.containerd.unshare.v1",
        wall: "namespaces",
        sandboxApi: true,
        deadlines,
        options,
      },
    },
    nodeSelector: { "kubernetes.io/hostname": "node-1" },
    runtimeClass: { overhead: { memory: "measured" } },
    probe: { interval: "10s" },
  },
});
const apply = (options: object) =>
  cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(profile(options)) });
/** Memory that the RuntimeClass declares. */
const overhead = (): Promise<string> =>
  cluster.kubectl(["get", "runtimeclass", name, "-o", "jsonpath={.overhead.podFixed.memory}"]).catch(String);
const statusIs = (wanted: (status: ProfileStatus) => boolean, what: string): Promise<void> =>
  until(AbortSignal.timeout(90_000), 90_000, what, async () => {
    const { status } = await nodeRuntime(cluster, node.name);
    const mine = status?.profiles?.find((each) => each.name === name);
    if (mine && wanted(mine)) return true;
    throw new Error(JSON.stringify(mine ?? "no status yet"));
  });

beforeAll(async () => {
  cluster = await bulkheadCluster();
  node = cluster.node("node-1");
  ns = inNamespace(cluster, "any-shim");
  await ns.create();
});
afterAll(async () => {
  await ns?.destroy();
  await cluster?.kubectl(["delete", "rtp", name, beside, "--ignore-not-found"]);
  await node?.exec(["rm", "-f", binary]);
});

describe("A profile of a shim that is none of Bulkhead's", () => {
  test("says on each node where the shim is missing that it is", async () => {
    await apply({ config: 'greeting = "hello"\n' });
    await statusIs(
      ({ phase, reason, message }) =>
        phase === "Failed" &&
        reason === "NotSupported" &&
        message.includes("containerd-shim-unshare-v1 is neither"),
      "the node to miss the shim",
    );
  });

  test("is Ready as soon as the node has it, its canary having found the wall that the profile names", async () => {
    await node.copyTo(tool("containerd-shim-unshare-v1"), binary);
    await profileReady(cluster, name);
    await statusIs(
      ({ phase, canary }) => phase === "Ready" && canary?.assertions.includes("own-pid-namespace") === true,
      "the canary's word",
    );
    const { stdout } = await node.try(["sh", "-c", `cat /etc/bulkhead/shim/${name}.*.toml`]);
    expect(stdout).toBe('greeting = "hello"\n');
    expect(await node.readFile(`${paths.handlers}/${name}.yaml`)).toContain(`binary: ${binary}`);
  });

  test("declares what the canary's pod took beside its container, and pods reckon with it", async () => {
    const declared = await overhead();
    expect(declared).toMatch(/^(16|32|48|64)Mi$/);
    await cluster.kubectl(["delete", "runtimeclass", name]);
    await until(AbortSignal.timeout(30_000), 30_000, "the class as it was", async () => {
      const now = await overhead();
      if (now === declared) return true;
      throw new Error(now);
    });
    const pod = podOf("reckons", name, `${cluster.registry}/bulkhead/test:1`);
    await ns.run(pod);
    const jsonpath = "jsonpath={.spec.overhead.memory}";
    expect(await ns.kubectl(["get", "pod", "reckons", "-o", jsonpath])).toBe(declared);
    await ns.kubectl(["delete", "pod", "reckons", "--grace-period=1"]);
  });

  test("runs pods: their logs, exec, network and end", async () => {
    const image = `${cluster.registry}/bulkhead/test:1`;
    const command = ["sh", "-c", "echo here I am; httpd -f -p 8080 -h /etc"];
    const pod = await ns.run(podOf("walled", name, image, { command }, { nodeName: node.name }));
    expect(await ns.kubectl(["logs", "walled"])).toBe("here I am\n");
    expect(await ns.exec("walled", "cat", "/proc/1/comm")).toBe("httpd\n");
    const passwd = await ns.exec("walled", "wget", "-qO-", `http://${pod.status.podIP}:8080/passwd`);
    expect(passwd).toContain("root");
    expect(await node.exec(["pgrep", "-f", "-c", "containerd-shim-unshare-v1"])).not.toBe("0\n");
  });

  test("refuses options that are not what they say, and goes back when they are put right", async () => {
    await apply({ config: "greeting = [" });
    await statusIs(({ message }) => message.includes("options.config is no toml"), "the options' refusal");
    await apply({ config: 'greeting = "again"\n' });
    await profileReady(cluster, name);
  });

  const leavesNothing = (): Promise<void> => {
    const left = `ls ${paths.handlers} /etc/bulkhead/shim 2>/dev/null | grep ${name}; pgrep -f ^${binary}`;
    return until(AbortSignal.timeout(60_000), 60_000, "the handler to go", async () => {
      const { stdout } = await node.try(["sh", "-c", left]);
      if (stdout === "") return true;
      throw new Error(stdout);
    });
  };

  test("leaves nothing on the node when it is deleted", async () => {
    await ns.kubectl(["delete", "pod", "walled", "--grace-period=1"]);
    await cluster.kubectl(["delete", "rtp", name]);
    await leavesNothing();
  });

  test("holds no other profile up while its shim hangs, and goes at once when it is deleted", async () => {
    const hanging = '#!/bin/sh\ncase " $* " in *" start "*) exec sleep 1800 ;; esac\n';
    await node.exec(["sh", "-c", `printf %s "$1" >${binary}; chmod 755 ${binary}`, "sh", hanging]);
    await apply({});
    await statusIs(({ phase }) => phase === "Verifying", "the canary");
    await until(AbortSignal.timeout(60_000), 60_000, "the shim to hang", async () => {
      return (await node.exec(["pgrep", "-f", "sleep 1800"])) !== "";
    });
    const { nodeSelector } = profile({}).spec;
    const other = {
      ...profile({}),
      metadata: { name: beside },
      spec: { handler: { runc: {} }, nodeSelector },
    };
    await cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(other) });
    await profileReady(cluster, beside);
    await statusIs(({ phase }) => phase === "Verifying", "the canary to wait as before");
    await cluster.kubectl(["delete", "rtp", name, beside, "--timeout=40s"]);
    await leavesNothing();
    expect((await node.try(["pgrep", "-f", "sleep 1800"])).code).toBe(1);
  });
});
