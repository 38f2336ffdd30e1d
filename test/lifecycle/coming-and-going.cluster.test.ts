import { join } from "node:path";
import type { RuntimeProfile } from "@bulkhead/lib/api/runtime-profile.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { applyProfiles, namespace, profileReady } from "../cluster/bulkhead.ts";
import { pushImages } from "../cluster/push-images.ts";
import { first, podOf, ready } from "../pods/kube.ts";
import type { Lives } from "../pods/lives.ts";
import { tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { eventually, type Life, openLife, walls } from "./life.ts";
import { difference, nodeListing } from "./listing.ts";

/**
 * Bulkhead comes to a live node, serves beside its engine, leaves without a trace, and comes again (issue 3,
 * "fronting" and "What must hold", 2 and 5). The tests stand on each other in this order.
 */

let life: Life;
let before: Lives;
let listing: string[];
const pods = ["old", "new", ...walls];

/** As the README says it, with nothing else. */
const helmInstall = async (): Promise<void> => {
  await life.cluster.helm([
    ...["install", "bulkhead", join(import.meta.dirname, "../../charts/bulkhead")],
    ...["--namespace", namespace, "--create-namespace", "--wait", "--timeout", "3m"],
    ...["--set", `image.registry=${life.cluster.registry}`],
    ...["--set", `image.tag=${await pushImages(life.cluster.registry)}`],
  ]);
  await applyProfiles(life.cluster);
};

beforeAll(async () => {
  life = await openLife("coming");
  // Another file of this run may have installed it.
  if (await life.isInstalled()) await life.uninstall();
  await life.cluster.kubectl([
    ...["delete", "crd", "--ignore-not-found"],
    ...["runtimeprofiles.bulkhead.dev", "noderuntimes.bulkhead.dev"],
  ]);
  // What the kubelet has yet to take away of what was there is not what the node was.
  await eventually(async () => expect(await life.node.exec(["ls", "/var/log/pods"])).toBe(""), 120);
  await life.ns.apply(life.counter("old"));
  // Fails once and then runs: its restart count is one.
  await life.ns.apply(
    podOf(
      "old-restarted",
      undefined,
      life.image,
      {
        command: ["sh", "-c", "test -e /v/been || { touch /v/been; exit 3; }; sleep 100000"],
        volumeMounts: [{ name: "v", mountPath: "/v" }],
        // The engine makes the control groups of each class of pods with its first one: the chart's are of this one.
        resources: { requests: { cpu: "10m" } },
      },
      { restartPolicy: "Always", volumes: [{ name: "v", emptyDir: {} }] },
    ),
  );
  await life.ns.until("old", ready);
  await life.ns.until("old-restarted", (pod) => ready(pod) && first(pod)?.restartCount === 1);
});
afterAll(async () => {
  await life?.[Symbol.asyncDispose]();
});

describe("A live node that Bulkhead comes to", () => {
  test("goes over to it, and no container that ran there notices", async () => {
    before = await life.lives("old");
    listing = await nodeListing(life.node);
    expect(before["old-restarted/main"]).toMatchObject({
      restarts: 1,
      process: expect.stringMatching(/^\d+ since \d+$/),
    });
    await helmInstall();
    expect(await life.node.readFile("/etc/kubernetes/kubelet.yaml")).toContain("/run/bulkhead/cri.sock");
    expect(difference(listing, await nodeListing(life.node)).length).toBeGreaterThan(100);
    expect(await life.lives("old")).toEqual(before);
    await life.counts("old");
  });

  test("starts pods of its profiles beside those of its engine", async () => {
    for (const wall of walls) await life.ns.run(life.counter(wall, wall));
    await life.ns.run(life.counter("new"));
  });

  test.each(pods)("execs in pod %s in every way, and shows its log", async (pod) => {
    const { cluster, ns } = life;
    for (const sockets of ["true", "false"])
      expect(
        await cluster.kubectl(["-n", ns.namespace, "exec", pod, "--", "echo", "hello"], {
          env: { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: sockets },
        }),
      ).toBe("hello\n");
    const exec = `${tool("kubectl")} -n ${ns.namespace} exec -it ${pod} -- sh -c 'test -t 0 && echo terminal'`;
    const tty = await outcome(["script", "-qec", exec, "/dev/null"], {
      env: { KUBECONFIG: cluster.kubeconfig },
    });
    expect(tty).toMatchObject({ code: 0, stdout: expect.stringContaining("terminal") });
    const { id = "" } = (await life.lives(pod))[`${pod}/main`] ?? {};
    expect(await life.crictl("exec", "-s", id, "echo", "sync")).toContain("sync");
    await life.counts(pod);
  });

  test("lists the containers, pods and images of both engines on one socket", async () => {
    const [ps, sandboxes, images] = [
      await life.crictl("ps"),
      await life.crictl("pods"),
      await life.crictl("images"),
    ];
    for (const name of ["old-restarted", ...pods]) {
      expect(ps).toMatch(new RegExp(`\\b${name}\\b`));
      expect(sandboxes).toMatch(new RegExp(`\\b${name}\\b.*\\bcoming\\b`));
    }
    expect(images.match(/bulkhead\/test /g)).toHaveLength(1);
    expect(images).toMatch(/\/pause /);
  });

  test("counts the memory of both engines' pods", async () => {
    const path = `/api/v1/nodes/${life.node.name}/proxy/stats/summary`;
    await eventually(async () => {
      const summary = JSON.parse(await life.cluster.kubectl(["get", "--raw", path])) as {
        pods: { podRef: { name: string }; containers?: { memory?: { workingSetBytes?: number } }[] }[];
      };
      const memory = (name: string) =>
        summary.pods.find(({ podRef }) => podRef.name === name)?.containers?.[0]?.memory?.workingSetBytes;
      for (const name of pods) expect(memory(name), name).toBeGreaterThan(0);
    });
  });
});

/** What helm says, which may refuse. */
const tryUninstall = async () => {
  const flags = ["--namespace", namespace, "--wait", "--timeout", "3m"];
  const { code, stdout, stderr } = await outcome([tool("helm"), "uninstall", "bulkhead", ...flags], {
    env: { KUBECONFIG: life.cluster.kubeconfig },
  });
  return { code, said: `${stdout}${stderr}` };
};

describe("Bulkhead leaves", () => {
  test("not while pods use its profiles: helm uninstall names them, changes nothing, and can be tried again", async () => {
    const profilesAre = async () => {
      const { items } = await life.get<{ items: RuntimeProfile[] }>("rtp");
      return items.map(({ metadata: { uid, generation, deletionTimestamp } }) => ({
        ...{ uid, generation, deletionTimestamp },
      }));
    };
    const stood = await profilesAre();
    for (const _time of ["once", "again"]) {
      const { code, said } = await tryUninstall();
      expect(code).not.toBe(0);
      for (const wall of walls)
        expect(said).toMatch(new RegExp(`Nothing was changed: .*RuntimeClass .*"${wall}.*: coming/${wall}`));
    }
    expect(await profilesAre()).toEqual(stood);
    for (const wall of walls) await profileReady(life.cluster, wall, undefined, 30);
    await life.tryPod("still", walls[0]);
  });

  test("no pod that uses the profile alone, and says which it waits for", async () => {
    await life.cluster.kubectl(["delete", "rtp", "sandboxed", "--wait=false"]);
    await eventually(async () =>
      expect(await life.condition("sandboxed", "Progressing")).toMatchObject({
        reason: "InUse",
        message: expect.stringContaining("coming/sandboxed"),
      }),
    );
    // What is marked cannot be unmarked: that is said, and the others are left as they are.
    const { code, said } = await tryUninstall();
    expect(code).not.toBe(0);
    expect(said).toMatch(/Nothing was changed \(marked for deletion already, .*: sandboxed; each goes/);
    const { metadata } = await life.get<RuntimeProfile>("rtp", "standard");
    expect(metadata.deletionTimestamp).toBeUndefined();
    await life.counts("sandboxed");
    expect(await life.cluster.kubectl(["get", "runtimeclass", "sandboxed", "-o", "name"])).toContain(
      "sandboxed",
    );
    await life.ns.remove("sandboxed");
    await life.cluster.kubectl(["wait", "--for=delete", "rtp/sandboxed", "--timeout=60s"]);
    await expect(life.cluster.kubectl(["get", "runtimeclass", "sandboxed"])).rejects.toThrow(/not found/);
    await eventually(async () => expect(await life.nodeProfile("sandboxed")).toBeUndefined());
    expect(await life.node.exec(["ls", "/etc/bulkhead/handlers.d"])).toBe("standard.yaml\n");
  });

  test("not without an operator, who alone lets a profile go: helm uninstall says so and marks nothing", async () => {
    await life.ns.remove("standard");
    const operator = (...argv: string[]) => life.cluster.kubectl(["-n", namespace, ...argv]);
    await operator("scale", "deployment", "bulkhead-operator", "--replicas=0");
    try {
      const pods = ["pods", "-l", "app.kubernetes.io/component=operator"];
      await operator("wait", "--for=delete", ...pods, "--timeout=120s");
      const { code, said } = await tryUninstall();
      expect(code).not.toBe(0);
      expect(said).toMatch(/Nothing was changed: Cannot see the operator work: .*bulkhead-operator/);
      const { metadata } = await life.get<RuntimeProfile>("rtp", "standard");
      expect(metadata.deletionTimestamp).toBeUndefined();
    } finally {
      await operator("scale", "deployment", "bulkhead-operator", "--replicas=1");
      await operator("rollout", "status", "deployment/bulkhead-operator", "--timeout=180s");
    }
  });

  test("a node that is byte for byte what it was, with its engine's pods as they were", async () => {
    const running = await life.lives();
    await life.uninstall();
    expect(await life.lives()).toEqual(running);
    expect(await life.lives("old")).toEqual(before);
    await life.counts("old");
    await life.counts("new");
    expect(await life.ns.exec("old", "echo", "here")).toBe("here\n");
    await life.ns.remove("new");
    // The kubelet takes what is left of the chart's pods away in its own time.
    await eventually(async () => expect(difference(listing, await nodeListing(life.node))).toEqual([]), 60);
    await life.tryPod("after");
  });

  test("and comes again with the same command, and is there when the node restarts", async () => {
    await helmInstall();
    for (const wall of walls) await life.ns.run(life.counter(wall, wall));
    await life.node.restart();
    for (const name of ["old", ...walls])
      await life.ns.until(name, (pod) => ready(pod) && first(pod)?.restartCount === 1, 120);
    for (const name of ["old", ...walls]) {
      expect(await life.ns.exec(name, "echo", "up")).toBe("up\n");
      await life.counts(name);
    }
    for (const wall of walls) await profileReady(life.cluster, wall, undefined, 120);
    // Kubelet's own words for a container that a power cut ended.
    for (const wall of walls)
      expect(first(await life.ns.get(wall))?.lastState.terminated?.reason).toBeDefined();
  });
});
