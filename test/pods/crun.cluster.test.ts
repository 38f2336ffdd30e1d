import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bulkheadCluster, profileReady } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { first, inNamespace, type Namespace, podOf } from "./kube.ts";

type Info = { runtimeHandlers: { name: string; features?: Record<string, boolean> }[] };

/** crun from the agent's bundle, as a profile: the life of a pod where crun's command line is another than runc's. */

const profile = "lean";
let cluster: Cluster;
let image: string;
let ns: Namespace;
const pod = (name: string, container = {}, spec = {}) => podOf(name, profile, image, container, spec);

beforeAll(async () => {
  cluster = await bulkheadCluster();
  image = `${cluster.registry}/bulkhead/test:1`;
  await cluster.kubectl(["apply", "-f", "-"], {
    input: JSON.stringify({
      apiVersion: "bulkhead.dev/v1alpha1",
      kind: "RuntimeProfile",
      metadata: { name: profile },
      spec: { handler: { crun: {} } },
    }),
  });
  await profileReady(cluster, profile);
  ns = inNamespace(cluster, "pods-crun");
  await ns.create();
});
afterAll(async () => {
  await ns?.destroy();
  await cluster?.kubectl(["delete", "runtimeprofile", profile, "--timeout=60s"]);
});

describe("Under crun", () => {
  test("what the handler offers is what its program says of itself", async () => {
    const socket = "unix:///run/bulkhead/cri.sock";
    const info = await cluster.node("node-1").exec(["crictl", `--runtime-endpoint=${socket}`, "info"]);
    const { runtimeHandlers } = JSON.parse(info) as Info;
    const offers = (name: string) => runtimeHandlers.find((each) => each.name === name)?.features ?? {};
    expect(offers("standard").recursive_read_only_mounts).toBe(true);
    // Debian's crun 1.8.1 has no `features` yet: nothing is offered on trust.
    expect(offers(profile).recursive_read_only_mounts ?? false).toBe(false);
    expect(offers(profile).user_namespaces ?? false).toBe(false);
  });

  test("a pod runs, answers exec with and without input, and its log is its output", async () => {
    const p = await ns.run(
      pod("plain", { command: ["sh", "-c", "echo out; echo err >&2; exec sleep 3600"] }),
    );
    expect(await ns.kubectl(["logs", "plain"])).toBe("out\nerr\n");
    expect(await ns.kubectl(["exec", "-i", "plain", "--", "cat"], "typed")).toBe("typed");
    await expect(ns.exec("plain", "sh", "-c", "exit 7")).rejects.toThrow(/exit code 7/);
    const node = cluster.node(p.spec.nodeName);
    const id = first(p)?.containerID.replace(/^.*:\/\//, "") ?? "";
    // crun's own record of it, made by the program of the bundle.
    expect(await node.exec(["ls", `/run/bulkhead/oci/${profile}/${id}`])).toContain("status");
  });

  test("limits stand in the cgroups, follow a resize, and end who is over them", async () => {
    const p = await ns.run(pod("limited", { resources: { limits: { memory: "64Mi", cpu: "250m" } } }));
    const node = cluster.node(p.spec.nodeName);
    const id = first(p)?.containerID.replace(/^.*:\/\//, "") ?? "";
    const limit = () =>
      node.exec([
        "sh",
        "-c",
        `cat /sys/fs/cgroup/memory/kubepods*/*/pod*/${id}/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory/kubepods*/pod*/${id}/memory.limit_in_bytes`,
      ]);
    expect(Number(await limit())).toBe(64 << 20);
    const resources = { limits: { memory: "96Mi", cpu: "250m" }, requests: { memory: "96Mi", cpu: "250m" } };
    const patch = { spec: { containers: [{ name: "main", resources }] } };
    await ns.kubectl(["patch", "pod", "limited", "--subresource", "resize", "-p", JSON.stringify(patch)]);
    await expect.poll(async () => Number(await limit()), { timeout: 30_000 }).toBe(96 << 20);
    await ns.apply(
      pod("oom", { command: ["sh", "-c", "tail /dev/zero"], resources: { limits: { memory: "48Mi" } } }),
    );
    const ended = await ns.until("oom", ({ status }) => status.phase === "Failed", 90);
    expect(first(ended)?.state.terminated).toMatchObject({ exitCode: 137, reason: "OOMKilled" });
  });

  test.each([
    ["Completed", 0, ["sh", "-c", "exit 0"]],
    ["Error", 42, ["sh", "-c", "exit 42"]],
    ["StartError", 128, ["/no/such/program"]],
  ])("a container ends as %s with %i", async (reason, exitCode, command) => {
    await ns.apply(pod(`ends-${exitCode}`, { command }));
    const p = await ns.until(`ends-${exitCode}`, ({ status }) => /Succeeded|Failed/.test(status.phase));
    expect(first(p)?.state.terminated).toMatchObject({ exitCode, reason });
  });

  test("containers share a PID namespace, a volume and the pod's address", async () => {
    const mounts = [{ name: "v", mountPath: "/v" }];
    await ns.run(
      pod(
        "shared",
        { command: ["sh", "-c", "echo seen > /v/f; exec sleep 3600"], volumeMounts: mounts },
        {
          shareProcessNamespace: true,
          volumes: [{ name: "v", emptyDir: {} }],
          initContainers: [
            {
              name: "web",
              image,
              restartPolicy: "Always",
              command: ["httpd", "-f", "-p", "8080", "-h", "/v"],
              volumeMounts: mounts,
            },
          ],
        },
      ),
    );
    expect(await ns.sh("shared", "wget -qO- http://127.0.0.1:8080/f; ps | grep -c '[h]ttpd'")).toBe(
      "seen\n1\n",
    );
  });
});
