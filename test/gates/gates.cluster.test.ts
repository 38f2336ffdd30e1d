import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { type Cluster, startCluster, stopCluster } from "../cluster/cluster.ts";
import { sharedDescription } from "../cluster/shared.ts";
import { ensureTestImages } from "../images/build.ts";
import { pathOf, startReceiverOn } from "../observability/otlp.ts";
import { first, inNamespace, type Namespace, podOf, ready } from "../pods/kube.ts";

/**
 * What a kubelet leaves to the runtime when its feature gates say so: nodes whose engine is Bulkhead alone, with the
 * gates on that are not yet, and what a pod and its owner see of it. One node's cgroups are cgroupfs', the other's are
 * systemd's, both of cgroup v1.
 */

const name = `${sharedDescription.name}-gates`;
const groups = "k8s-staging-cri-tools/test-image-predefined-group:latest";
const unused = "k8s-staging-cri-tools/test-image-user-uid";
let cluster: Cluster;
let ns: Namespace;
let image: string;
const pod = (name: string, container = {}, spec = {}) =>
  podOf(name, undefined, image, container, { nodeName: "node-1", ...spec });
/** What the kubelet answers at a path, through the API server. */
const kubelet = (path: string, node = "node-1"): Promise<string> =>
  cluster.kubectl(["get", "--raw", `/api/v1/nodes/${node}/proxy${path}`]);

/** The kubelet's /stats/summary, as far as it is read here. */
type Summary = {
  pods: {
    podRef: { uid: string };
    cpu?: { usageCoreNanoSeconds: number };
    memory?: { usageBytes: number; workingSetBytes: number };
    network?: { rxBytes: number };
    containers: { name: string; memory?: { workingSetBytes: number } }[];
  }[];
};

const imagesOfNode = (): Promise<string> => cluster.node("node-1").exec(["crictl", "images"]);

beforeAll(async () => {
  cluster = await startCluster({
    name,
    nodes: [
      {
        name: "node-1",
        engine: "bulkhead",
        kubelet: {
          // Wrong here; the runtime knows better (KubeletCgroupDriverFromCRI).
          cgroupDriver: "systemd",
          featureGates: { PodAndContainerStatsFromCRI: true, EventedPLEG: true },
          tracing: { endpoint: "127.0.0.1:4317", samplingRatePerMillion: 1_000_000 },
          imageMinimumGCAge: "30s",
          imageMaximumGCAge: "1m",
        },
        // Of what no kubelet traces, nothing: its word counts.
        runtime: { tracing: { endpoint: "http://127.0.0.1:4318", samplingRatio: 0 } },
      },
      {
        name: "systemd",
        engine: "bulkhead",
        // Wrong here too.
        kubelet: { cgroupDriver: "cgroupfs", featureGates: { PodAndContainerStatsFromCRI: true } },
        runtime: { cgroupDriver: "systemd" },
      },
    ],
  });
  image = `${cluster.registry}/bulkhead/test:1`;
  await ensureTestImages(cluster.registry, ["bulkhead/test:1", groups, `${unused}:latest`]);
  ns = inNamespace(cluster, "gates");
  await ns.create();
  await ns.apply(pod("passing", { image: `${cluster.registry}/${unused}:latest` }));
  await ns.until("passing", ready);
  expect(await imagesOfNode()).toContain(unused);
  await cluster.kubectl(["-n", "gates", "delete", "pod", "passing", "--grace-period=1"]);
});
afterAll(() => stopCluster(name));

test("KubeletCgroupDriverFromCRI: pods lie where the runtime's driver puts them, whatever the file says", async () => {
  await ns.apply(pod("driver"));
  const { metadata } = await ns.until("driver", ready);
  const found = await cluster
    .node("node-1")
    .exec(["find", "/sys/fs/cgroup/memory", "-name", `*${metadata.uid}*`]);
  expect(found.trim()).toBe(`/sys/fs/cgroup/memory/kubepods/besteffort/pod${metadata.uid}`);
});

describe("With systemd's cgroups", () => {
  const limits = { cpu: "100m", memory: "64Mi" };
  /** By its quality of service, what its container asks for, and what the kernel's files say of container and pod. */
  const pods = {
    guaranteed: { slice: "", resources: { limits }, files: ["10000", `${64 << 20}`, "102"] },
    burstable: {
      slice: "-burstable",
      resources: { limits: { memory: "64Mi" }, requests: { cpu: "50m" } },
      files: ["-1", `${64 << 20}`, "51"],
    },
    besteffort: { slice: "-besteffort", resources: {}, files: ["-1", "9223372036854771712", "2"] },
  } as const;
  const on = (argv: readonly string[]) => cluster.node("systemd").exec(argv);
  const start = (name: string, container: object) => ns.apply(pod(name, container, { nodeName: "systemd" }));
  const sliceOf = (name: keyof typeof pods, uid: string): string => {
    const of = `kubepods${pods[name].slice}`;
    const parents = pods[name].slice === "" ? "kubepods.slice" : `kubepods.slice/${of}.slice`;
    return `${parents}/${of}-pod${uid.replaceAll("-", "_")}.slice`;
  };
  const filesOf = async (path: string): Promise<string[]> => {
    const files = { "cpu.cfs_quota_us": "cpu", "memory.limit_in_bytes": "memory", "cpu.shares": "cpu" };
    const said = await on([
      "cat",
      ...Object.entries(files).map(([file, controller]) => `/sys/fs/cgroup/${controller}/${path}/${file}`),
    ]);
    return said.trim().split("\n");
  };
  const names = Object.keys(pods) as (keyof typeof pods)[];
  const scopes = new Map<keyof typeof pods, { path: string; uid: string }>();

  beforeAll(async () => {
    for (const name of names) await start(name, { resources: pods[name].resources });
    for (const name of names) {
      const up = await ns.until(name, ready);
      const id = first(up)?.containerID.replace(/^.*:\/\//, "");
      const { uid } = up.metadata;
      scopes.set(name, { uid, path: `${sliceOf(name, uid)}/bulkhead-${id}.scope` });
    }
  });

  test.each(names)("a pod is a slice and its container a scope, with their limits: %s", async (name) => {
    const { path = "", uid = "" } = scopes.get(name) ?? {};
    expect(await filesOf(path)).toEqual(pods[name].files);
    expect(await filesOf(sliceOf(name, uid))).toEqual(pods[name].files);
    expect(await on(["systemctl", "is-active", path.split("/").at(-1) ?? ""])).toBe("active\n");
    // systemd knows the limits as well: a reload of it does not take them away.
    await on(["systemctl", "daemon-reload"]);
    expect(await filesOf(path)).toEqual(pods[name].files);
    // On v1 a container shares the node's cgroup namespace: the exec itself says where it is.
    expect((await ns.exec(name, "cat", "/proc/self/cgroup")).match(/:memory:(.*)/)?.[1]).toBe(`/${path}`);
  });

  test("more for a container that runs reaches the kernel and systemd", async () => {
    const more = { limits: { cpu: "200m", memory: "96Mi" }, requests: { cpu: "200m", memory: "96Mi" } };
    const patch = { spec: { containers: [{ name: "main", resources: more }] } };
    await ns.kubectl([
      ...["patch", "pod", "guaranteed", "--subresource", "resize"],
      ...["--patch", JSON.stringify(patch)],
    ]);
    const { path = "" } = scopes.get("guaranteed") ?? {};
    await vi.waitFor(async () => expect(await filesOf(path)).toEqual(["20000", `${96 << 20}`, "204"]), {
      timeout: 60_000,
      interval: 500,
    });
    await on(["systemctl", "daemon-reload"]);
    expect(await filesOf(path)).toEqual(["20000", `${96 << 20}`, "204"]);
  });

  test("stats are what the pod's cgroup says", async () => {
    const { uid = "" } = scopes.get("burstable") ?? {};
    await ns.sh("burstable", "head -c 20971520 /dev/zero > /dev/shm/held");
    const file = `/sys/fs/cgroup/memory/${sliceOf("burstable", uid)}/memory.usage_in_bytes`;
    await vi.waitFor(
      async () => {
        const summary = JSON.parse(await kubelet("/stats/summary", "systemd")) as Summary;
        const found = summary.pods.find(({ podRef }) => podRef.uid === uid);
        const usage = Number(await on(["cat", file]));
        expect(usage).toBeGreaterThan(20 * 2 ** 20);
        expect(Math.abs((found?.memory?.usageBytes ?? 0) - usage)).toBeLessThan(2 * 2 ** 20);
        expect(found?.containers[0]?.memory?.workingSetBytes).toBeGreaterThan(20 * 2 ** 20);
        expect(found?.cpu?.usageCoreNanoSeconds).toBeGreaterThan(0);
      },
      { timeout: 60_000, interval: 1000 },
    );
  });

  test("a container over its limit ends as OOMKilled", async () => {
    await start("oom", { command: ["tail", "/dev/zero"], resources: { limits: { memory: "16Mi" } } });
    const ended = await ns.until("oom", ({ status }) => status.phase === "Failed");
    expect(first(ended)?.state.terminated).toMatchObject({ reason: "OOMKilled", exitCode: 137 });
    await ns.remove("oom");
  });

  test("containers live through a restart of the runtime's unit, and what ends leaves no scope and no slice", async () => {
    await on(["systemctl", "restart", "bulkhead-runtime.service"]);
    await vi.waitFor(async () => expect(await ns.exec("besteffort", "echo", "alive")).toBe("alive\n"), {
      timeout: 30_000,
      interval: 500,
    });
    for (const name of names) await ns.remove(name);
    const left = ["find", "/sys/fs/cgroup", "-name", "*.scope", "-o", "-name", "*-pod*.slice"];
    const units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "*.scope", "*-pod*.slice"];
    await vi.waitFor(
      async () => {
        const found = (await on(left)).trim().split("\n");
        expect(found.filter((each) => each !== "" && !each.endsWith("/init.scope"))).toEqual([]);
        const loaded = (await on(units)).trim().split("\n");
        expect(loaded.filter((each) => each !== "" && !each.startsWith("init.scope"))).toEqual([]);
      },
      { timeout: 30_000, interval: 500 },
    );
  });
});

test("KubeletTracing: a pod's start is one trace, from the kubelet's sync to the phases in the runtime", async () => {
  const node = cluster.node("node-1");
  await using receiver = await startReceiverOn(node);
  // Nobody was there so far, and a kubelet that found nobody tries again after as much as two minutes.
  await node.exec(["systemctl", "restart", "kubelet.service"]);
  await vi.waitFor(
    async () => expect((await receiver.spans()).map(({ service }) => service)).toContain("kubelet"),
    { timeout: 60_000, interval: 500 },
  );
  const name = `traced-${randomUUID()}`;
  await ns.apply(pod(name));
  const { metadata } = await ns.until(name, ready);
  const start = async () => {
    const spans = await receiver.spans();
    const run = spans.find(
      ({ service, name, attributes }) =>
        service === "bulkhead-runtime" &&
        name === "runtime.v1.RuntimeService/RunPodSandbox" &&
        attributes["k8s.pod.uid"] === metadata.uid,
    );
    return spans.filter(({ traceId }) => traceId === run?.traceId);
  };
  const pathsOf = async () => {
    const spans = await start();
    return spans.map((span) => pathOf(span, spans).join(" > "));
  };
  /** The kubelet's own span, its client's and ours of a call, and what is below. */
  const below = (call: string, rest: string) =>
    expect.stringMatching(new RegExp(`^syncPod > (.* > )?(runtime.v1.RuntimeService/${call} > ){2}${rest}$`));
  await vi.waitFor(
    async () => expect(await pathsOf()).toContainEqual(below("StartContainer", "start > runc start")),
    { timeout: 30_000, interval: 500 },
  );
  expect(await pathsOf()).toContainEqual(below("RunPodSandbox", "network > cni bridge ADD"));
  const services = new Set((await start()).map(({ service }) => service));
  expect([...services].sort()).toEqual(["bulkhead-runtime", "kubelet"]);
});

test("UserNamespacesSupport: root of a pod with hostUsers: false is nobody on the node", async () => {
  await ns.apply(pod("userns", {}, { hostUsers: false }));
  await ns.until("userns", ready);
  const [inside, outside, length] = (await ns.exec("userns", "cat", "/proc/self/uid_map"))
    .trim()
    .split(/\s+/);
  expect([inside, length]).toEqual(["0", "65536"]);
  expect(Number(outside)).toBeGreaterThanOrEqual(65_536);
});

test("ImageVolume: an image's files are a volume, read-only, by sub path too", async () => {
  const volume = { name: "files", image: { reference: `${cluster.registry}/${groups}` } };
  await ns.apply(
    pod(
      "volume",
      {
        volumeMounts: [
          { name: "files", mountPath: "/whole" },
          { name: "files", mountPath: "/part", subPath: "etc" },
        ],
      },
      { volumes: [volume] },
    ),
  );
  await ns.until("volume", ready);
  expect(await ns.exec("volume", "cat", "/part/group")).toContain("group-defined-in-image:x:50000:");
  expect(await ns.exec("volume", "sh", "-c", "touch /whole/new 2>&1 || true")).toContain(
    "Read-only file system",
  );
});

test("InPlacePodVerticalScaling: a container gets more without a restart", async () => {
  const resources = (cpu: string, memory: string) => ({
    requests: { cpu, memory },
    limits: { cpu, memory },
  });
  await ns.apply(pod("resize", { resources: resources("100m", "64Mi") }));
  const before = await ns.until("resize", ready);
  const patch = { spec: { containers: [{ name: "main", resources: resources("200m", "96Mi") }] } };
  await cluster.kubectl([
    ...["-n", "gates", "patch", "pod", "resize", "--subresource", "resize"],
    ...["--patch", JSON.stringify(patch)],
  ]);
  await vi.waitFor(
    async () => {
      const limits = await ns.exec(
        "resize",
        ...["cat", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
      );
      expect(limits.trim().split("\n")).toEqual(["20000", `${96 * 2 ** 20}`]);
    },
    { timeout: 60_000, interval: 500 },
  );
  const after = await ns.get("resize");
  expect(first(after)?.restartCount).toBe(0);
  expect(first(after)?.containerID).toBe(first(before)?.containerID);
});

test("InPlacePodLevelResourcesVerticalScaling: a pod as a whole gets more without a restart", async () => {
  const resources = (cpu: string, memory: string) => ({
    requests: { cpu, memory },
    limits: { cpu, memory },
  });
  await ns.apply(pod("resize-pod", {}, { resources: resources("100m", "64Mi") }));
  const before = await ns.until("resize-pod", ready);
  const limits = async (): Promise<string[]> => {
    const files = ["cpu/DIR/cpu.cfs_quota_us", "memory/DIR/memory.limit_in_bytes"];
    const dir = `kubepods/pod${before.metadata.uid}`;
    const said = await cluster
      .node("node-1")
      .exec(["cat", ...files.map((file) => `/sys/fs/cgroup/${file.replace("DIR", dir)}`)]);
    return said.trim().split("\n");
  };
  expect(await limits()).toEqual(["10000", `${64 * 2 ** 20}`]);
  await cluster.kubectl([
    ...["-n", "gates", "patch", "pod", "resize-pod", "--subresource", "resize"],
    ...["--patch", JSON.stringify({ spec: { resources: resources("200m", "96Mi") } })],
  ]);
  await vi.waitFor(async () => expect(await limits()).toEqual(["20000", `${96 * 2 ** 20}`]), {
    timeout: 60_000,
    interval: 500,
  });
  await vi.waitFor(
    async () => {
      const status = await cluster.kubectl([
        ...["-n", "gates", "get", "pod", "resize-pod", "-o", "jsonpath={.status.resources.limits.memory}"],
      ]);
      expect(status).toBe("96Mi");
    },
    { timeout: 60_000, interval: 500 },
  );
  const after = await ns.get("resize-pod");
  expect(first(after)?.restartCount).toBe(0);
  expect(first(after)?.containerID).toBe(first(before)?.containerID);
});

test("RecursiveReadOnlyMounts: what is mounted below is read-only too, and the status says so", async () => {
  await ns.apply(
    pod(
      "readonly",
      {
        volumeMounts: [{ name: "data", mountPath: "/data", readOnly: true, recursiveReadOnly: "Enabled" }],
      },
      { volumes: [{ name: "data", hostPath: { path: "/run" } }] },
    ),
  );
  await ns.until("readonly", ready);
  // A tmpfs of the node below the volume.
  const said = await ns.exec("readonly", "sh", "-c", "touch /data/lock/new 2>&1; touch /data/new 2>&1; true");
  expect(said.match(/Read-only file system/g)).toHaveLength(2);
  const status = await cluster.kubectl([
    ...["-n", "gates", "get", "pod", "readonly", "-o"],
    'jsonpath={.status.containerStatuses[0].volumeMounts[?(@.mountPath=="/data")].recursiveReadOnly}',
  ]);
  expect(status).toBe("Enabled");
});

describe("SupplementalGroupsPolicy", () => {
  test.each([
    ["Merge", "1000 50000 60000", "[1000,50000,60000]"],
    ["Strict", "1000 60000", "[1000,60000]"],
  ])(
    "%s: the process has the groups that the policy gives, and the status names them",
    async (policy, of, told) => {
      const security = { runAsUser: 1000, runAsGroup: 1000, supplementalGroups: [60000] };
      const name = `groups-${policy.toLowerCase()}`;
      await ns.apply(
        pod(
          name,
          { image: `${cluster.registry}/${groups}` },
          { securityContext: { ...security, supplementalGroupsPolicy: policy } },
        ),
      );
      await ns.until(name, ready);
      expect((await ns.exec(name, "id", "-G")).trim()).toBe(of);
      const status = await cluster.kubectl([
        ...["-n", "gates", "get", "pod", name, "-o"],
        "jsonpath={.status.containerStatuses[0].user.linux.supplementalGroups}",
      ]);
      expect(status).toBe(told);
    },
  );
});

test("EventedPLEG: the kubelet follows the runtime's events", async () => {
  const events = /^kubelet_evented_pleg_connection_success_count(?:\{.*\})? ([1-9]\d*)/m;
  await vi.waitFor(async () => expect(await kubelet("/metrics")).toMatch(events), { timeout: 30_000 });
});

describe("PodAndContainerStatsFromCRI", () => {
  /** 20 MiB that stay. */
  const hold = "head -c 20971520 /dev/zero > /dev/shm/held; sleep 3600; true";
  let uid: string;
  beforeAll(async () => {
    await ns.apply(pod("stats", { command: ["sh", "-c", hold] }));
    ({ uid } = (await ns.until("stats", ready)).metadata);
  });
  const cgroupFile = async (controller: string, file: string): Promise<number> =>
    Number(
      await cluster
        .node("node-1")
        .exec(["cat", `/sys/fs/cgroup/${controller}/kubepods/besteffort/pod${uid}/${file}`]),
    );

  test("/stats/summary says what the pod's cgroup says", async () => {
    await vi.waitFor(
      async () => {
        const summary = JSON.parse(await kubelet("/stats/summary")) as Summary;
        const found = summary.pods.find(({ podRef }) => podRef.uid === uid);
        const usage = await cgroupFile("memory", "memory.usage_in_bytes");
        expect(usage).toBeGreaterThan(20 * 2 ** 20);
        expect(Math.abs((found?.memory?.usageBytes ?? 0) - usage)).toBeLessThan(2 * 2 ** 20);
        expect(found?.containers[0]?.memory?.workingSetBytes).toBeGreaterThan(20 * 2 ** 20);
        const cpu = await cgroupFile("cpuacct", "cpuacct.usage");
        expect(found?.cpu?.usageCoreNanoSeconds).toBeGreaterThan(0);
        expect(found?.cpu?.usageCoreNanoSeconds).toBeLessThanOrEqual(cpu);
        expect(found?.network?.rxBytes).toBeGreaterThanOrEqual(0);
      },
      { timeout: 60_000, interval: 1000 },
    );
  });

  test("/metrics/cadvisor has the runtime's figures by cAdvisor's names", async () => {
    const text = await kubelet("/metrics/cadvisor");
    const value = (metric: string, container: string): number =>
      Number(
        text
          .split("\n")
          .find(
            (line) =>
              line.startsWith(`${metric}{`) &&
              line.includes(`container="${container}"`) &&
              line.includes('pod="stats"'),
          )
          ?.split("} ")[1]
          ?.split(" ")[0],
      );
    const usage = await cgroupFile("memory", "memory.usage_in_bytes");
    expect(Math.abs(value("container_memory_usage_bytes", "") - usage)).toBeLessThan(2 * 2 ** 20);
    expect(value("container_memory_working_set_bytes", "main")).toBeGreaterThan(20 * 2 ** 20);
    // The shell and its sleep.
    expect(value("container_processes", "main")).toBe(2);
    expect(value("container_spec_cpu_shares", "main")).toBe(2);
    expect(value("container_start_time_seconds", "main")).toBeGreaterThan(1.7e9);
    expect(value("container_network_receive_bytes_total", "")).toBeGreaterThan(0);
    expect(value("container_fs_usage_bytes", "main")).toBeGreaterThan(0);
  });
});

// The last, because the kubelet looks every five minutes.
test("ImageMaximumGCAge: an image that nothing has used for a while goes, one in use stays", {
  timeout: 400_000,
}, async () => {
  await vi.waitFor(async () => expect(await imagesOfNode()).not.toContain(unused), {
    timeout: 360_000,
    interval: 2000,
  });
  expect(await imagesOfNode()).toContain("bulkhead/test");
});
