import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { applyProfiles, installChart, profileReady, profiles, pushImages } from "../cluster/bulkhead.ts";
import { type Cluster, type Node, startCluster, stopCluster } from "../cluster/cluster.ts";
import { endProcesses } from "../cluster/process.ts";
import { readRecord } from "../cluster/record.ts";
import { ensureTestImages } from "../images/build.ts";
import { first, inNamespace, type Namespace, podOf, ready } from "../pods/kube.ts";
import { tool } from "../tools/cache.ts";
import { outcome } from "../tools/run.ts";
import { difference, nodeListing } from "./listing.ts";

/**
 * One node through the whole life of Bulkhead on it: it comes, serves, is killed, is given what cannot work, leaves
 * without a trace, and comes again (issue 3, "fronting" and "What must hold", 2 to 5). The tests stand on each other
 * in this order, on a cluster of their own.
 */

const description = { name: "lifecycle", nodes: [{ name: "node-1", engine: "containerd" }] } as const;
const walls = profiles;

let cluster: Cluster;
let node: Node;
let ns: Namespace;
let image: string;
let tag: string;
let listing: string[];
let keep: boolean;

/** Numbers without end, twenty a second: a line that is lost leaves a gap. */
const counting = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
const counter = (name: string, wall?: string) =>
  podOf(name, wall, image, { command: ["sh", "-c", counting] }, { restartPolicy: "Always" });
/** Fails once and then runs: its restart count is one. */
const restarted = () =>
  podOf(
    "old-restarted",
    undefined,
    image,
    {
      command: ["sh", "-c", "test -e /v/been || { touch /v/been; exit 3; }; sleep 100000"],
      volumeMounts: [{ name: "v", mountPath: "/v" }],
    },
    { restartPolicy: "Always", volumes: [{ name: "v", emptyDir: {} }] },
  );

type Life = Record<string, { id: string; restarts: number; pid: string }>;

/** Every container of the namespace: its id, how often it was restarted, and the process that it is. */
const lives = async (prefix = ""): Promise<Life> => {
  const { items } = JSON.parse(await ns.kubectl(["get", "pods", "-o", "json"])) as {
    items: Awaited<ReturnType<Namespace["get"]>>[];
  };
  const life: Life = {};
  for (const { metadata, status } of items) {
    if (!metadata.name.startsWith(prefix)) continue;
    for (const { name, containerID, restartCount } of status.containerStatuses ?? []) {
      const id = containerID.replace(/^.*:\/\//, "");
      // Nobody but the kernel can vouch for a process: the first of the container, and when it began.
      const pid = await node.exec([
        "sh",
        "-c",
        `for p in /proc/[0-9]*; do grep -q "${id}" $p/cgroup 2>/dev/null && { cut -d ' ' -f 1,22 $p/stat; break; }; done; true`,
      ]);
      life[`${metadata.name}/${name}`] = { id, restarts: restartCount, pid: pid.trim() };
    }
  }
  return life;
};

/** The numbers in a pod's log, in order and without a gap; a repeated line is allowed where the wall repeats. */
const numbersOf = async (pod: string, repeats: boolean): Promise<number> => {
  const numbers = (await ns.kubectl(["logs", pod])).trim().split("\n").map(Number);
  const seen = repeats ? numbers.filter((n, at) => n !== numbers[at - 1]) : numbers;
  const gap = seen.findIndex((n, at) => n !== at);
  if (gap >= 0) throw new Error(`log of ${pod} at line ${gap}: ${seen.slice(Math.max(0, gap - 3), gap + 4)}`);
  return seen.length;
};

/** Waits until the log grows: the container runs and its output arrives. */
const counts = async (pod: string, repeats: boolean): Promise<void> => {
  // While the kubelet or the runtime comes back, there is no log to be had. A gap stays one.
  let before = 0;
  await eventually(async () => {
    before = await numbersOf(pod, repeats);
  }, 20);
  await eventually(async () => expect(await numbersOf(pod, repeats)).toBeGreaterThan(before + 5), 20);
};

const eventually = async (check: () => Promise<void>, seconds = 60): Promise<void> => {
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

type Condition = {
  type: string;
  status: string;
  reason: string;
  message: string;
  lastTransitionTime: string;
};
type NodeProfile = { name: string; phase: string; reason: string; message: string; revision: string };

const get = async <T>(...argv: string[]): Promise<T> =>
  JSON.parse(await cluster.kubectl(["get", ...argv, "-o", "json"])) as T;
const nodeProfile = async (name: string): Promise<NodeProfile | undefined> => {
  const { status } = await get<{ status?: { profiles?: NodeProfile[] } }>("nrt", node.name);
  return status?.profiles?.find((each) => each.name === name);
};
const condition = async (profile: string, type: string): Promise<Condition | undefined> => {
  const { status } = await get<{ status?: { conditions?: Condition[] } }>("rtp", profile);
  return status?.conditions?.find((each) => each.type === type);
};
const nodeReadySince = async (): Promise<string> => {
  const { status } = await get<{ status: { conditions: Condition[] } }>("node", node.name);
  const found = status.conditions.find(({ type }) => type === "Ready");
  return `${found?.status} since ${found?.lastTransitionTime}`;
};
const apply = (object: object) => cluster.kubectl(["apply", "-f", "-"], { input: JSON.stringify(object) });
const profileOf = (name: string, handler: object, rest: object = {}) => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name },
  spec: { handler, ...rest },
});
/** Starts a pod, says something in it and removes it. */
const tryPod = async (name: string, wall?: string): Promise<void> => {
  await ns.run(podOf(name, wall, image, { command: ["sh", "-c", "echo alive; sleep 1000"] }));
  expect(await ns.exec(name, "echo", "hello")).toBe("hello\n");
  expect(await ns.kubectl(["logs", name])).toBe("alive\n");
  await ns.remove(name);
};

beforeAll(async () => {
  keep = (await readRecord(description.name)) !== undefined;
  cluster = await startCluster(description);
  node = cluster.node("node-1");
  await ensureTestImages(`http://${cluster.registry}`, ["bulkhead/test:1"]);
  image = `${cluster.registry}/bulkhead/test:1`;
  tag = await pushImages(cluster);
  ns = inNamespace(cluster, "lifecycle");
  await ns.create();
  await ns.apply(counter("old"));
  await ns.apply(restarted());
  await ns.until("old", ready);
  await ns.until("old-restarted", (pod) => ready(pod) && first(pod)?.restartCount === 1);
});
afterAll(async () => {
  if (!keep) await stopCluster(description.name);
});

describe("A live node that Bulkhead comes to", () => {
  let before: Life;

  test("goes over to it, and no container that ran there notices", async () => {
    before = await lives("old");
    listing = await nodeListing(node);
    expect(before["old-restarted/main"]).toMatchObject({
      restarts: 1,
      pid: expect.stringMatching(/^\d+ \d+$/),
    });
    await installChart(cluster, tag);
    await applyProfiles(cluster);
    expect(await node.readFile("/etc/kubernetes/kubelet.yaml")).toContain("/run/bulkhead/cri.sock");
    expect(await lives("old")).toEqual(before);
    await counts("old", false);
  });

  test("starts pods of its profiles beside those of its engine", async () => {
    for (const wall of walls) await ns.run(counter(wall, wall));
    await ns.run(counter("new"));
  });

  test.each(["old", "new", ...walls])("execs in pod %s in every way, and shows its log", async (pod) => {
    for (const sockets of ["true", "false"])
      expect(
        await cluster.kubectl(["-n", ns.namespace, "exec", pod, "--", "echo", "hello"], {
          env: { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: sockets },
        }),
      ).toBe("hello\n");
    const tty = await outcome(
      [
        "script",
        "-qec",
        `${tool("kubectl")} -n ${ns.namespace} exec -it ${pod} -- sh -c 'test -t 0 && echo terminal'`,
        "/dev/null",
      ],
      { env: { KUBECONFIG: cluster.kubeconfig } },
    );
    expect(tty).toMatchObject({ code: 0, stdout: expect.stringContaining("terminal") });
    const id = (await lives(pod))[`${pod}/main`]?.id ?? "";
    expect(await crictl("exec", "-s", id, "echo", "sync")).toContain("sync");
    await counts(pod, pod === "sandboxed");
  });

  const crictl = (...argv: string[]) =>
    node.exec(["crictl", "--runtime-endpoint=unix:///run/bulkhead/cri.sock", ...argv]);

  test("lists the containers, pods and images of both engines on one socket", async () => {
    const [ps, pods, images] = [await crictl("ps"), await crictl("pods"), await crictl("images")];
    for (const name of ["old", "old-restarted", "new", ...walls]) {
      expect(ps).toMatch(new RegExp(`\\b${name}\\b`));
      expect(pods).toMatch(new RegExp(`\\b${name}\\b.*\\blifecycle\\b`));
    }
    expect(images.match(/bulkhead\/test /g)).toHaveLength(1);
    expect(images).toMatch(/\/pause /);
  });

  test("counts the memory of both engines' pods", async () => {
    await eventually(async () => {
      const { pods } = JSON.parse(
        await cluster.kubectl(["get", "--raw", `/api/v1/nodes/${node.name}/proxy/stats/summary`]),
      ) as { pods: { podRef: { name: string }; containers?: { memory?: { workingSetBytes?: number } }[] }[] };
      for (const name of ["old", "new", ...walls])
        expect(
          pods.find(({ podRef }) => podRef.name === name)?.containers?.[0]?.memory?.workingSetBytes,
          name,
        ).toBeGreaterThan(0);
    });
  });

  test("loses only its engine's own pods' calls while the engine is down", async () => {
    const running = await lives();
    await node.exec(["systemctl", "stop", "containerd"]);
    const away = /engine at \/run\/containerd\/containerd\.sock does not answer/;
    await expect(ns.exec("old", "true")).rejects.toThrow(away);
    await expect(ns.exec("new", "true")).rejects.toThrow(away);
    for (const wall of walls) await tryPod(`meanwhile-${wall}`, wall);
    await ns.apply(podOf("meanwhile-none", undefined, image));
    await eventually(async () => expect(await ns.kubectl(["get", "events"])).toMatch(away), 30);
    await node.exec(["systemctl", "start", "containerd"]);
    await ns.until("meanwhile-none", ready);
    await ns.remove("meanwhile-none");
    expect(await ns.exec("old", "echo", "back")).toBe("back\n");
    expect(await lives()).toEqual(running);
    await counts("old", false);
  });
});

describe("No container stops, no exit code and no line is lost", () => {
  /** Kills a container's process of Bulkhead's own pods on the node. */
  const killProgram = (program: string) =>
    node.exec([
      "bash",
      "-c",
      `for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/bundle/bin/node /app/${program}.mjs' && kill -KILL \${p#/proc/}; done; true`,
    ]);
  const allWell = async (): Promise<void> => {
    await eventually(async () => {
      const { status } = await get<{ status: { conditions: Condition[] } }>("node", node.name);
      expect(status.conditions.find(({ type }) => type === "Ready")?.status).toBe("True");
      for (const wall of walls) {
        expect((await condition(wall, "Ready"))?.status).toBe("True");
        expect((await nodeProfile(wall))?.phase).toBe("Ready");
      }
    });
    for (const name of ["old", "new", ...walls]) await counts(name, name === "sandboxed");
  };

  const blows: [string, () => Promise<unknown>][] = [
    ["kill -9 of the runtime", () => node.kill("bulkhead-runtime")],
    [
      "kill -9 of the runtime again and again",
      async () => {
        for (let i = 0; i < 5; i++) {
          await node.kill("bulkhead-runtime").catch(() => {});
          await sleep(700 + 400 * i);
        }
      },
    ],
    ["kill -9 of the reporter", () => killProgram("reporter")],
    ["kill -9 of the installer", () => killProgram("installer")],
    ["kill -9 of the operator", () => killProgram("operator")],
    ["systemctl restart bulkhead-runtime", () => node.exec(["systemctl", "restart", "bulkhead-runtime"])],
    ["systemctl restart containerd", () => node.exec(["systemctl", "restart", "containerd"])],
    ["systemctl restart kubelet", () => node.exec(["systemctl", "restart", "kubelet"])],
  ];
  test.each(blows)("by %s", async (_blow, strike) => {
    const running = await lives();
    await strike();
    await allWell();
    expect(await lives()).toEqual(running);
  });

  test("when they end while the runtime is dead", async () => {
    const name = (wall: string) => `ends-${wall}`;
    for (const wall of walls)
      await ns.apply(podOf(name(wall), wall, image, { command: ["sh", "-c", "sleep 8; echo last; exit 7"] }));
    for (const wall of walls) await ns.until(name(wall), ({ status }) => status.phase === "Running");
    await node.kill("bulkhead-runtime");
    await node.exec(["systemctl", "stop", "bulkhead-runtime"]);
    await sleep(9000);
    const started = Date.now();
    await node.exec(["systemctl", "start", "bulkhead-runtime"]);
    for (const wall of walls) {
      const { status } = await ns.until(name(wall), ({ status }) => status.phase === "Failed");
      const end = status.containerStatuses?.[0]?.state.terminated;
      expect(end).toMatchObject({ exitCode: 7, reason: "Error" });
      if (wall === "standard") expect(Date.parse(end?.finishedAt ?? "")).toBeLessThan(started);
      expect(await ns.kubectl(["logs", name(wall)])).toBe("last\n");
      await ns.remove(name(wall));
    }
  });

  test("when installer, reporter, operator and runtime are killed in the midst of an installation", async () => {
    const running = await lives();
    await apply(profileOf("extra", { gvisor: { platform: "systrap", network: "none" } }));
    for (const program of ["installer", "operator", "reporter", "installer"]) {
      await sleep(400);
      await killProgram(program);
    }
    await node.kill("bulkhead-runtime");
    await profileReady(cluster, "extra", undefined, 120);
    await cluster.kubectl(["delete", "rtp", "extra", "--timeout=60s"]);
    expect(await lives()).toEqual(running);
    await allWell();
  });
});

describe("A profile that cannot work", () => {
  let since: string;
  let running: Life;
  beforeAll(async () => {
    since = await nodeReadySince();
    running = await lives();
  });

  const degraded = async (profile: string, reason: RegExp, message: RegExp): Promise<NodeProfile> => {
    await eventually(async () => {
      const found = await condition(profile, "Degraded");
      expect(found).toMatchObject({ status: "True" });
      expect(`${found?.reason} ${found?.message}`).toMatch(message);
      expect((await nodeProfile(profile))?.reason).toMatch(reason);
    }, 90);
    return (await nodeProfile(profile)) as NodeProfile;
  };

  test("by a flag that gVisor does not know ends Degraded, and heals when it is corrected", async () => {
    await apply(profileOf("flagged", { gvisor: { flags: ["--no-such-flag"] } }));
    const found = await degraded("flagged", /^(CanaryFailed|InstallFailed)$/, /no-such-flag/);
    expect(found).toMatchObject({ phase: "Failed", message: expect.stringContaining("no-such-flag") });
    for (const wall of walls) await tryPod(`beside-${wall}`, wall);
    await apply(profileOf("flagged", { gvisor: {} }));
    await profileReady(cluster, "flagged", undefined, 60);
    expect((await condition("flagged", "Degraded"))?.status).toBe("False");
    await tryPod("flagged", "flagged");
  });

  test("any more goes back to the revision that did, and says so", async () => {
    const { revision } = (await nodeProfile("flagged")) as NodeProfile;
    await apply(profileOf("flagged", { gvisor: { flags: ["--no-such-flag"] } }));
    const found = await degraded("flagged", /^CanaryFailed$/, /no-such-flag/);
    expect(found).toMatchObject({ phase: "RolledBack", revision });
    await tryPod("rolled-back", "flagged");
    await cluster.kubectl(["delete", "rtp", "flagged", "--timeout=60s"]);
  });

  test("for want of its program ends Degraded", async () => {
    await apply(profileOf("missing", { kata: {} }));
    await degraded("missing", /^NotSupported$/, /kata/);
    await cluster.kubectl(["delete", "rtp", "missing", "--timeout=60s"]);
  });

  test("by a broken runsc ends Degraded, and heals when runsc can be put right", async () => {
    const version = (await node.exec(["readlink", "-f", "/opt/bulkhead/current"])).trim();
    // A mount cannot be replaced: what drifts otherwise is put back before anybody sees it.
    await node.exec(["mount", "--bind", "/bin/false", `${version}/bin/runsc`]);
    await degraded("sandboxed", /Failed$/, /runsc/);
    await tryPod("beside-broken", "standard");
    await node.exec(["umount", `${version}/bin/runsc`]);
    await profileReady(cluster, "sandboxed", undefined, 120);
    await tryPod("healed", "sandboxed");
  });

  test("by a runsc that was written over is mended at once, and an Event says so", async () => {
    const path = `${(await node.exec(["readlink", "-f", "/opt/bulkhead/current"])).trim()}/bin/runsc`;
    const digest = await node.exec(["sha256sum", path]);
    // Running sandboxes hold the old inode: it cannot be written to, but another can take its place.
    await node.exec(["sh", "-c", `echo broken > ${path}.x && chmod 755 ${path}.x && mv ${path}.x ${path}`]);
    await eventually(async () => expect(await node.exec(["sha256sum", path])).toBe(digest), 60);
    await eventually(async () =>
      expect(await cluster.kubectl(["get", "events.events.k8s.io", "-A"])).toMatch(/Drifted.*runsc|Drifted/),
    );
    await profileReady(cluster, "sandboxed", undefined, 60);
  });

  test("takes neither the runtime from the kubelet nor a container from anybody", async () => {
    expect(await nodeReadySince()).toBe(since);
    expect(await lives()).toEqual(running);
  });

  test.each([
    ["no handler", {}, "spec.handler"],
    ["a flag with a shell's meaning", { runc: { flags: ["--a=$(id)"] } }, "spec.handler.runc.flags"],
    ["an unknown platform", { gvisor: { platform: "magic" } }, "spec.handler.gvisor.platform"],
  ])("by %s is refused with the field's name", async (_title, handler, field) => {
    await expect(apply(profileOf("refused", handler))).rejects.toThrow(field);
  });
});

describe("An image that cannot be had", () => {
  const stored = () => node.exec(["sh", "-c", "cd /var/lib/bulkhead && find . ! -type d | sort"]);
  const waits = async (name: string, wanted: string, message: RegExp): Promise<void> => {
    await ns.apply(podOf(name, "standard", wanted, { imagePullPolicy: "Always" }));
    const waiting = (state: Awaited<ReturnType<Namespace["get"]>>) =>
      state.status.containerStatuses?.[0]?.state.waiting;
    const failed = await ns.until(name, (pod) => waiting(pod)?.reason === "ErrImagePull");
    expect(waiting(failed)?.message).toMatch(message);
    await ns.until(name, (pod) => waiting(pod)?.reason === "ImagePullBackOff");
  };

  test.each([
    [
      "because it does not exist",
      "bulkhead/none:1",
      /bulkhead\/none:1.*not found|not found.*bulkhead\/none:1/,
    ],
    [
      "because its digest is another",
      `bulkhead/test@sha256:${"0".repeat(64)}`,
      /0{64}.*not found|not found.*0{64}/,
    ],
  ])("%s says so, backs off, and leaves nothing", async (_why, ref, message) => {
    const before = await stored();
    await waits("no-image", `${cluster.registry}/${ref}`, message);
    expect(await stored()).toBe(before);
    await ns.remove("no-image");
  });

  test("because the registry is down says so, and comes when the registry does", async () => {
    const before = await stored();
    const registry = (await cluster.processes()).filter(({ component }) => component === "registry");
    await endProcesses(registry, 0);
    try {
      await waits("no-registry", image, /ECONNREFUSED|connection refused/i);
      expect(await stored()).toBe(before);
    } finally {
      await cluster.restartComponent("registry");
    }
    await ns.until("no-registry", ready, 90);
    await ns.remove("no-registry");
  });
});

describe("Bulkhead leaves", () => {
  test("not while pods use the profile, and says which", async () => {
    await cluster.kubectl(["delete", "rtp", "sandboxed", "--wait=false"]);
    await eventually(async () => {
      const found = await condition("sandboxed", "Progressing");
      expect(found).toMatchObject({
        reason: "InUse",
        message: expect.stringContaining("lifecycle/sandboxed"),
      });
    });
    await sleep(3000);
    await counts("sandboxed", true);
    await ns.remove("sandboxed");
    await cluster.kubectl(["wait", "--for=delete", "rtp/sandboxed", "--timeout=60s"]);
    await expect(cluster.kubectl(["get", "runtimeclass", "sandboxed"])).rejects.toThrow(/not found/);
    await eventually(async () => expect(await nodeProfile("sandboxed")).toBeUndefined());
    expect(await node.exec(["ls", "/etc/bulkhead/handlers.d"])).toBe("standard.yaml\n");
  });

  test("a node that is what it was, with its engine's pods as they were", async () => {
    await ns.remove("standard");
    const running = await lives();
    await ns.kubectl(["exec", "new", "--", "true"]);
    await cluster.helm([
      "uninstall",
      "bulkhead",
      "--namespace",
      "bulkhead-system",
      "--wait",
      "--timeout",
      "4m",
    ]);
    await cluster.kubectl(["delete", "namespace", "bulkhead-system", "--timeout=60s"]);
    expect(await lives()).toEqual(running);
    await counts("old", false);
    await ns.exec("old", "true");
    await ns.remove("new");
    // The kubelet takes what is left of the chart's pods away in its own time.
    await eventually(async () => expect(difference(listing, await nodeListing(node))).toEqual([]), 60);
    await tryPod("after");
  });

  test("and comes again, and is there when the node restarts", async () => {
    await installChart(cluster, tag);
    await applyProfiles(cluster);
    for (const wall of walls) await ns.run(counter(wall, wall));
    await node.restart();
    for (const name of ["old", ...walls])
      await ns.until(name, (pod) => ready(pod) && first(pod)?.restartCount === 1, 120);
    for (const name of ["old", ...walls]) {
      expect(await ns.exec(name, "echo", "up")).toBe("up\n");
      await counts(name, name === "sandboxed");
    }
    for (const wall of walls) await profileReady(cluster, wall, undefined, 120);
    // Kubelet's own words for a container that a power cut ended.
    for (const wall of walls)
      expect((await ns.get(wall)).status.containerStatuses?.[0]?.lastState.terminated?.reason).toBeDefined();
  });
});

afterAll(async () => {
  if (!keep) return;
  await cluster
    .helm(["uninstall", "bulkhead", "-n", "bulkhead-system", "--ignore-not-found", "--wait"])
    .catch(() => {});
  await ns.destroy();
});
