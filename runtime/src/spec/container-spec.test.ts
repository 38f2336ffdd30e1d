import { create } from "@bufbuild/protobuf";
import {
  type ContainerConfig,
  ContainerConfigSchema,
  NamespaceMode,
  PodSandboxConfigSchema,
  SupplementalGroupsPolicy,
} from "@bulkhead/lib/gen/cri_pb.js";
import { describe, expect, test } from "vitest";
import { capabilityNames } from "./capabilities.ts";
import { type ContainerInput, containerSpec } from "./container-spec.ts";
import type { HostFacts } from "./host.ts";
import { parseGroup, parsePasswd, userOf } from "./user.ts";

const host: HostFacts = {
  capabilities: [...capabilityNames],
  oomScoreAdjMin: -1000,
  openFiles: { soft: 1024, hard: 524_288 },
  cgroup: "v2",
  cgroupDriver: "cgroupfs",
  swapAccounting: true,
  hugetlb: true,
  apparmor: false,
  selinux: undefined,
  seccomp: true,
  arch: "x64",
};

const input = (
  config: Parameters<typeof create<typeof ContainerConfigSchema>>[1] = {},
  more: Partial<ContainerInput> = {},
): ContainerInput => ({
  id: "c1",
  config: create(ContainerConfigSchema, {
    metadata: { name: "app" },
    ...(config as object),
  }) as ContainerConfig,
  pod: {
    id: "p1",
    config: create(PodSandboxConfigSchema, {
      metadata: { name: "pod", namespace: "ns", uid: "uid" },
      linux: {
        cgroupParent: "/kubepods/pod1",
        securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } },
      },
    }),
    namespaces: { net: "/n/net", ipc: "/n/ipc", uts: "/n/uts" },
    hostname: "box",
    files: { hostname: "/p/hostname", hosts: "/p/hosts", resolvConf: "/p/resolv.conf", shm: "/p/shm" },
  },
  image: {
    user: "",
    env: ["PATH=/bin", "A=image"],
    entrypoint: ["/entry"],
    cmd: ["cmd"],
    workingDir: "/work",
    stopSignal: "",
    volumes: [],
    labels: {},
  },
  user: { uid: 0, gid: 0, groups: [0] },
  mounts: [],
  devices: [],
  seccomp: undefined,
  pid: { use: "own" },
  rootfs: "/r",
  allowedAnnotations: [],
  host,
  ...more,
});

describe("process", () => {
  test("image's entrypoint and cmd run when the pod names none", () => {
    expect(containerSpec(input()).process).toMatchObject({ args: ["/entry", "cmd"], cwd: "/work" });
  });
  test("args of the pod replace cmd; command replaces both", () => {
    expect(containerSpec(input({ args: ["x"] })).process?.args).toEqual(["/entry", "x"]);
    expect(containerSpec(input({ command: ["c"] })).process?.args).toEqual(["c"]);
  });
  test("environment of the pod wins over the image's, and HOSTNAME is the pod's", () => {
    const env = containerSpec(input({ envs: [{ key: "A", value: new TextEncoder().encode("pod") }] })).process
      ?.env;
    expect(env).toEqual(["PATH=/bin", "HOSTNAME=box", "A=pod"]);
  });
  test("oom_score_adj is raised to what this process may set", () => {
    const config = { linux: { resources: { oomScoreAdj: -500n } } };
    expect(containerSpec(input(config)).process?.oomScoreAdj).toBe(-500);
    const small = input(config, { host: { ...host, oomScoreAdjMin: 0 } });
    expect(containerSpec(small).process?.oomScoreAdj).toBe(0);
  });
  test("drop ALL and add one leaves that one", () => {
    const capabilities = containerSpec(
      input({
        linux: {
          securityContext: {
            capabilities: { dropCapabilities: ["ALL"], addCapabilities: ["net_bind_service"] },
          },
        },
      }),
    ).process?.capabilities;
    expect(capabilities?.bounding).toEqual(["CAP_NET_BIND_SERVICE"]);
    expect(capabilities?.ambient).toBeUndefined();
  });
  test("privileged means every capability of the node, and no more", () => {
    const config = { linux: { securityContext: { privileged: true } } };
    const few = input(config, { host: { ...host, capabilities: ["CAP_CHOWN", "CAP_SYS_ADMIN"] } });
    expect(containerSpec(few).process?.capabilities?.bounding).toEqual(["CAP_CHOWN", "CAP_SYS_ADMIN"]);
  });
});

describe("linux", () => {
  test("namespaces that the pod pinned are joined; the others are new", () => {
    expect(containerSpec(input()).linux?.namespaces).toEqual([
      { type: "mount" },
      { type: "pid" },
      { type: "network", path: "/n/net" },
      { type: "ipc", path: "/n/ipc" },
      { type: "uts", path: "/n/uts" },
      { type: "cgroup" },
    ]);
  });
  test("a pod on the host's network keeps the host's name", () => {
    const base = input();
    const spec = containerSpec({ ...base, pod: { ...base.pod, namespaces: { ipc: "/n/ipc" } } });
    expect(spec.hostname).toBeUndefined();
    expect(spec.linux?.namespaces.map(({ type }) => type)).toEqual(["mount", "pid", "ipc", "cgroup"]);
  });
  test("cgroups are a path for cgroupfs and slice:prefix:name for systemd", () => {
    expect(containerSpec(input()).linux?.cgroupsPath).toBe("/kubepods/pod1/c1");
    const base = input({}, { host: { ...host, cgroupDriver: "systemd" } });
    base.pod.config.linux!.cgroupParent = "/kubepods.slice/kubepods-pod1.slice";
    expect(containerSpec(base).linux?.cgroupsPath).toBe("kubepods-pod1.slice:bulkhead:c1");
  });
  test("a memory limit without a word about swap means no swap", () => {
    const config = { linux: { resources: { memoryLimitInBytes: 100n, cpuShares: 2n } } };
    expect(containerSpec(input(config)).linux?.resources).toMatchObject({
      memory: { limit: 100, swap: 100 },
      cpu: { shares: 2 },
    });
  });
  test("a sysctl without a namespace is refused", () => {
    const base = input();
    base.pod.config.linux!.sysctls = { "kernel.panic": "1" };
    expect(() => containerSpec(base)).toThrow('Cannot set sysctl "kernel.panic": it is not namespaced');
  });
  test("a sysctl of the network is refused on the host's network", () => {
    const base = input();
    base.pod.config.linux!.sysctls = { "net.ipv4.ip_forward": "1" };
    base.pod.config.linux!.securityContext!.namespaceOptions!.network = NamespaceMode.NODE;
    expect(() => containerSpec(base)).toThrow("shares the host's net namespace");
  });
  test("masked and read-only paths are kubelet's, and none when privileged", () => {
    const security = { maskedPaths: ["/proc/a"], readonlyPaths: ["/proc/b"] };
    expect(containerSpec(input({ linux: { securityContext: security } })).linux).toMatchObject(security);
    const privileged = input({ linux: { securityContext: { ...security, privileged: true } } });
    expect(containerSpec(privileged).linux).toMatchObject({ maskedPaths: [], readonlyPaths: [] });
  });
});

describe("mounts", () => {
  const mount = (destination: string, more = {}) => ({
    destination,
    source: `/host${destination}`,
    readonly: false,
    recursiveReadOnly: false,
    propagation: "private" as const,
    options: [],
    ...more,
  });
  test("a mount of the pod replaces ours at the same place, and those below it", () => {
    const places = containerSpec(input({}, { mounts: [mount("/etc/hosts"), mount("/dev")] })).mounts.map(
      (each) => each.destination,
    );
    expect(places.filter((place) => place === "/etc/hosts")).toHaveLength(1);
    expect(places).not.toContain("/dev/shm");
    expect(places).toContain("/etc/resolv.conf");
  });
  test("outer mounts come before inner ones", () => {
    const mounts = [mount("/a/b/c"), mount("/a"), mount("/a/b")];
    const places = containerSpec(input({}, { mounts })).mounts.map((each) => each.destination);
    expect(places.slice(-3)).toEqual(["/a", "/a/b", "/a/b/c"]);
  });
  test("propagation and recursive read-only become mount options", () => {
    const mounts = [
      mount("/x", { propagation: "bidirectional" }),
      mount("/y", { readonly: true, recursiveReadOnly: true }),
    ];
    const spec = containerSpec(input({}, { mounts }));
    expect(spec.mounts.at(-2)?.options).toEqual(["rbind", "rshared", "rw"]);
    expect(spec.mounts.at(-1)?.options).toEqual(["rbind", "rprivate", "rro"]);
    expect(spec.linux?.rootfsPropagation).toBe("rshared");
  });
});

describe("annotations", () => {
  test("shims learn who is who, and a pod cannot say so itself", () => {
    const base = input({
      annotations: { "io.kubernetes.cri.sandbox-id": "forged", "dev.gvisor.a": "1", other: "2" },
    });
    const spec = containerSpec({ ...base, allowedAnnotations: ["*"] });
    expect(spec.annotations).toMatchObject({
      "io.kubernetes.cri.container-type": "container",
      "io.kubernetes.cri.sandbox-id": "p1",
      "io.kubernetes.cri.container-name": "app",
      "dev.gvisor.a": "1",
    });
    expect(containerSpec({ ...base, allowedAnnotations: ["dev.gvisor.*"] }).annotations).not.toHaveProperty(
      "other",
    );
  });
});

describe("user", () => {
  const accounts = {
    passwd: parsePasswd("root:x:0:0::/:\nalice:x:1000:100::/:\nbroken\nhuge:x:99999999999:0::/:\n"),
    group: parseGroup("root:x:0:\nusers:x:100:\nstaff:x:50:alice,bob\n"),
  };
  const security = (more: object) =>
    create(ContainerConfigSchema, { linux: { securityContext: more } }).linux?.securityContext;
  test("image's USER by name brings its groups", () => {
    expect(userOf(undefined, "alice", accounts)).toEqual({ uid: 1000, gid: 100, groups: [50, 100] });
  });
  test("policy Strict leaves the image's groups out", () => {
    const strict = security({
      supplementalGroupsPolicy: SupplementalGroupsPolicy.Strict,
      supplementalGroups: [7n],
    });
    expect(userOf(strict, "alice", accounts).groups).toEqual([7, 100]);
  });
  test("run_as_user wins over the image's USER", () => {
    expect(userOf(security({ runAsUser: { value: 1000n } }), "root", accounts)).toEqual({
      uid: 1000,
      gid: 100,
      groups: [50, 100],
    });
  });
  test("a uid that the image does not know has group 0", () => {
    expect(userOf(security({ runAsUser: { value: 5n } }), "", accounts)).toEqual({
      uid: 5,
      gid: 0,
      groups: [0],
    });
  });
  test("run_as_group alone is refused", () => {
    expect(() => userOf(security({ runAsGroup: { value: 5n } }), "", accounts)).toThrow(
      "without run_as_user",
    );
  });
  test.each(["4294967296", "2147483648", "99999999999999999999"])(
    "USER %s is refused, not taken for root",
    (user) => {
      expect(() => userOf(undefined, user, accounts)).toThrow("not an id below 2147483648");
    },
  );
  test("an unknown name is refused", () => {
    expect(() => userOf(undefined, "mallory", accounts)).toThrow("no such user in the image's /etc/passwd");
  });
});

test("what an image's labels say reaches no part of a specification (CVE-2026-53488)", () => {
  const names = [
    ...[
      "io.kubernetes.cri.sandbox-id",
      "io.containerd.runc.v2.group",
      "run.oci.handler",
      "run.oci.hooks.stderr",
    ],
    ...["dev.gvisor.flag.debug", "io.katacontainers.config.hypervisor.path", "org.systemd.property.ExecStop"],
  ];
  const base = input();
  const labels = Object.fromEntries(names.map((name) => [name, "from the image"]));
  const labelled = { ...base, image: { ...base.image, labels } };
  expect(containerSpec(labelled)).toEqual(containerSpec(base));
});

test("labels and profiles of the node's security modules are the process's, and the mounts' alone", () => {
  const labels = { process: "u:r:container_t:s0:c1,c2", mount: "u:object_r:container_file_t:s0:c1,c2" };
  const spec = containerSpec(input({}, { labels, apparmor: "bulkhead-default" }));
  expect(spec.process).toMatchObject({ selinuxLabel: labels.process, apparmorProfile: "bulkhead-default" });
  expect(spec.linux?.mountLabel).toBe(labels.mount);
  const plain = containerSpec(input());
  expect(plain.process).not.toHaveProperty("apparmorProfile");
  expect(plain.process).not.toHaveProperty("selinuxLabel");
  expect(plain.linux).not.toHaveProperty("mountLabel");
});
