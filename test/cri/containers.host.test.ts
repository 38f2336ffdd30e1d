import { existsSync } from "node:fs";
import { mkdir, readdir, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { type CriClient, type CriServices, connectCri } from "@bulkhead/lib/cri/client.ts";
import {
  CheckpointContainerRequestSchema,
  CreateContainerRequestSchema,
  ExecSyncRequestSchema,
  ImageService,
  RuntimeService,
} from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf } from "@bulkhead/lib/std/errors.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { hungDisk } from "../../runtime/src/container/hung-disk.ts";
import { front } from "../../runtime/src/handler/delegate/front.ts";
import { pushImage } from "../images/build.ts";
import { imageOf, mediaTypes, type RunConfig } from "../images/image.ts";
import { blobOf, digestOf } from "../images/push.ts";
import type { RunningRegistry } from "../images/registry.ts";
import { tarOf } from "../images/tar.ts";
import { run } from "../tools/run.ts";
import { type Daemon, remains } from "./daemon.ts";
import { busybox, containerConfig, criPods, type Fields, type Opened, type Pod } from "./pods.ts";

const cri = criPods({ name: "containers", subnet: 96, deadlineMs: 30_000 });
const { removePod, execute } = cri;
let scratch: string;
let registry: RunningRegistry;
let daemon: Daemon;
let call: Opened["call"];
beforeAll(async () => {
  ({ scratch, registry, daemon, call } = await cri.open());
});
afterAll(cri.close);

/** A pod sandbox of its own. */
const runPod = (linux: Fields = {}): Promise<Pod> =>
  cri.runPod({ linux: { security_context: { namespace_options: { pid: 1 } }, ...linux } });
const createIn = (pod: Pod, script: string, fields: Fields): Promise<string> =>
  cri.createIn(pod, containerConfig("main", script, busybox, fields));

/** A running container of its own pod; `use` gets its id, then everything goes. */
const withContainer = async <T>(
  container: Fields,
  use: (id: string) => Promise<T>,
  script = "exec sleep 1000",
  linux: Fields = {},
): Promise<T> => {
  const pod = await runPod(linux);
  try {
    const id = await createIn(pod, script, container);
    await cri.start(id);
    return await use(id);
  } finally {
    await removePod(pod.id);
  }
};

/** Runs the script in a container of a pod of its own, and again beside it; what it said. */
const output = (script: string, container: Fields = {}, linux: Fields = {}): Promise<string> =>
  withContainer(
    container,
    async (id) => {
      const said = await execute(id, script);
      // Its own output goes to the log, however it opens it.
      await expect.poll(() => daemon.crictl("logs", id)).toBe(said);
      return said;
    },
    `${script}; exec sleep 1000`,
    linux,
  );

/** What RunPodSandbox or CreateContainer says when it refuses. */
const refusal = async (container: Fields, linux: Fields = {}): Promise<string> => {
  let pod: Awaited<ReturnType<typeof runPod>> | undefined;
  try {
    pod = await runPod(linux);
    await createIn(pod, "true", container);
  } catch (error) {
    return messageOf(error);
  } finally {
    if (pod) await removePod(pod.id);
  }
  throw new Error("it was not refused");
};

const userns = (hostId: number, pid = 1): Fields => {
  const ids = [{ container_id: 0, host_id: hostId, length: 65536 }];
  return {
    security_context: {
      namespace_options: { pid, userns_options: { mode: 0, uids: ids, gids: ids } },
    },
  };
};

test("volumes on a disk that does not answer hold up neither other pods nor the end of their own", async () => {
  const place = join(scratch, "hung");
  await using _ = await hungDisk(place);
  const pod = await runPod();
  const names = ["a", "b", "c", "d", "e", "f"];
  const hung = await Promise.all(
    names.map((name) => {
      const mounts = [{ host_path: join(place, name), container_path: "/data" }];
      const config = containerConfig(name, "true", busybox, { mounts });
      const request = create(CreateContainerRequestSchema, {
        ...{ podSandboxId: pod.id, config, sandboxConfig: pod.config },
      });
      return call.createContainer(request, AbortSignal.timeout(2_000)).catch(messageOf);
    }),
  );
  expect(hung.every((said) => typeof said === "string")).toBe(true);
  // Six calls hang in the kernel still.
  expect(await output("echo on")).toBe("on\n");
  await removePod(pod.id);
});

test("two pods run in user namespaces of different ranges, own their files and share volumes by id-mapped mounts", async () => {
  const volume = join(scratch, "volume");
  await mkdir(volume, { mode: 0o755 });
  for (const [index, hostId] of [200_000, 400_000].entries()) {
    const ids = [{ container_id: 0, host_id: hostId, length: 65536 }];
    const said = await output(
      [
        "cat /proc/self/uid_map",
        "touch /made /data/made",
        "stat -c %u:%g /made /bin/busybox /etc/hosts /data /data/made",
        "echo x > /dev/stdout; echo x > /dev/shm/x && echo shm",
        "id -u; ping -c1 127.0.0.1 > /dev/null && echo loopback; hostname box2 && echo named",
      ].join("; "),
      {
        mounts: [{ host_path: volume, container_path: "/data", uidMappings: ids, gidMappings: ids }],
        linux: { security_context: { capabilities: { add_capabilities: ["SYS_ADMIN"] } } },
      },
      userns(hostId, index),
    );
    const lines = said.trim().split("\n");
    expect(lines[0]?.trim().split(/\s+/)).toEqual(["0", String(hostId), "65536"]);
    expect(lines.slice(1).join(" ")).toMatch(/^(0:0 )+x shm 0 loopback named$/);
  }
  // On the node the files of both are root's, whoever made them.
  expect((await stat(volume)).uid).toBe(0);
  expect(await remains(daemon)).toEqual([]);
});

test.each([
  ["two mappings", { uids: 2 }, "userns_options.uids must be one mapping, not 2"],
  ["the node's root", { host: 0 }, "maps the pod's root to the node's"],
  ["the node's network", { network: 2 }, "with the node's network namespace"],
  ["a mode that is none", { mode: 1 }, "only POD and NODE are known"],
] as const)("a user namespace with %s is refused by name", async (_what, change, message) => {
  const { uids = 1, host = 100_000, network = 0, mode = 0 } = { ...change } as Record<string, number>;
  const id = { container_id: 0, host_id: host, length: 1000 };
  const said = await refusal(
    {},
    {
      security_context: {
        namespace_options: {
          pid: 1,
          network,
          userns_options: { mode, uids: Array.from({ length: uids }, () => id), gids: [id] },
        },
      },
    },
  );
  expect(said).toContain(message);
});

test("Status says of each handler whether it has user namespaces and recursive read-only mounts", async () => {
  const { runtimeHandlers } = JSON.parse(await daemon.crictl("info")) as {
    runtimeHandlers: { name: string; features: Record<string, boolean> }[];
  };
  const features = Object.fromEntries(runtimeHandlers.map(({ name, features }) => [name, features]));
  expect(features.runc).toMatchObject({ user_namespaces: true, recursive_read_only_mounts: true });
  expect(features.gvisor?.user_namespaces ?? false).toBe(false);
});

describe("CDI devices", () => {
  const cdiFile = "/var/run/cdi/bulkhead-test.json";
  const device = {
    name: "0",
    containerEdits: { deviceNodes: [{ path: "/dev/gpu0", hostPath: "/dev/zero" }] },
  };
  const describeDevices = async (change: Fields = {}): Promise<void> => {
    await mkdir("/var/run/cdi", { recursive: true });
    await writeFile(
      cdiFile,
      JSON.stringify({
        cdiVersion: "0.6.0",
        kind: "bulkhead.test/gpu",
        devices: [device],
        containerEdits: {
          env: ["GPU_DRIVER=7"],
          mounts: [{ hostPath: "/etc/hostname", containerPath: "/opt/gpu/info", options: ["ro"] }],
          additionalGids: [4242],
        },
        ...change,
      }),
    );
  };
  const wanted = { CDI_devices: [{ name: "bulkhead.test/gpu=0" }] };
  afterEach(() => rm(cdiFile, { force: true }));

  test("give a container device nodes, variables, mounts and groups, by the file as it is now", async () => {
    await describeDevices();
    const script =
      "echo $GPU_DRIVER; test -s /opt/gpu/info && echo mounted; id -G; head -c3 /dev/gpu0 | od -An -tx1; touch /opt/gpu/info 2>&1 | tail -c 22";
    expect((await output(script, wanted)).split("\n").map((line) => line.trim())).toEqual([
      ...["7", "mounted", "0 4242", "00 00 00", "Read-only file system", ""],
    ]);
  });

  test("that no file defines are refused by name, with the files that could not be used", async () => {
    expect(await refusal(wanted)).toContain('Cannot add CDI device "bulkhead.test/gpu=0": no CDI file');
    await describeDevices({ cdiVersion: "9.0.0" });
    expect(await refusal(wanted)).toContain(cdiFile);
    await describeDevices({ annotations: { filler: "x".repeat(5 * 1024 * 1024) } });
    expect(await refusal(wanted)).toContain("larger than 4194304 bytes");
  });
});

describe("what a container may not have", () => {
  test.each([
    ["a log outside the pod's directory", { log_path: "../../out.log" }, 'Cannot log to "../../out.log"'],
    [
      "a device that is not there",
      { devices: [{ host_path: "/dev/no-such", container_path: "/dev/x" }] },
      "/dev/no-such",
    ],
    [
      "a mount option that undoes another",
      { mounts: [{ host_path: "/tmp", container_path: "/m", mount_options: ["dev"] }] },
      'mount option "dev" is not allowed',
    ],
    [
      "a recursive read-only mount that is writable",
      { mounts: [{ host_path: "/tmp", container_path: "/m", recursive_read_only: true }] },
      "recursive read-only needs read-only",
    ],
    [
      "an AppArmor profile that the node lacks",
      { linux: { security_context: { apparmor: { profile_type: 2, localhost_ref: "localhost/nope" } } } },
      'AppArmor profile "nope"',
    ],
    [
      "unified values on cgroup v1",
      { linux: { resources: { unified: { "memory.high": "1" } } } },
      "runs cgroup v1",
    ],
    [
      "a capability that is none",
      { linux: { security_context: { capabilities: { add_capabilities: ["NOPE"] } } } },
      'capability "NOPE"',
    ],
    [
      "a group without a user",
      { linux: { security_context: { run_as_group: { value: 5 } } } },
      "run_as_group without run_as_user",
    ],
    [
      "a user that the image lacks",
      { linux: { security_context: { run_as_username: "nope" } } },
      'user "nope"',
    ],
    [
      "an image that is not there as a volume",
      { mounts: [{ container_path: "/m", image: { image: "nope:1" } }] },
      "ImageVolumeMountFailed",
    ],
  ] as const)("%s is refused by name", async (_what, fields, message) => {
    expect(await refusal(fields as Fields)).toContain(message);
  });

  test("a seccomp profile that is not one is refused with its file and field", async () => {
    const profile = join(scratch, "seccomp.json");
    await writeFile(
      profile,
      '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"NO"}]}',
    );
    const asked = { security_context: { seccomp: { profile_type: 2, localhost_ref: profile } } };
    const said = await refusal({ linux: asked });
    expect(said).toContain(profile);
    expect(said).toContain("syscalls[0].action");
    await writeFile(
      profile,
      '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}',
    );
    const admin = { ...asked.security_context, capabilities: { add_capabilities: ["SYS_ADMIN"] } };
    expect(
      await output("hostname x 2>&1; grep Seccomp: /proc/self/status", {
        linux: { security_context: admin },
      }),
    ).toMatch(/not permitted[\s\S]*Seccomp:\s*2/);
  });

  test.each(["kernel.core_pattern", "vm.swappiness", "net/../kernel/core_pattern"])(
    "the node's sysctl %s is refused by name (CVE-2022-0811)",
    async (name) => {
      expect(await refusal({}, { sysctls: { [name]: "|/bin/sh" } })).toContain(`sysctl "${name}"`);
    },
  );
});

describe("escapes that runtimes had", () => {
  test("no descriptor of the node is open in a container or its execs (CVE-2024-21626)", async () => {
    // ls itself has the directory open.
    expect(await output("ls /proc/self/fd | sort -n | tr '\\n' ' '")).toMatch(/^0 1 2 3 $/);
  });

  test.each([7, 8, 9])("a working directory /proc/self/fd/%i leads nowhere (CVE-2024-21626)", async (fd) => {
    const cwd = { working_dir: `/proc/self/fd/${fd}` };
    await expect(withContainer(cwd, (id) => execute(id, "pwd"))).rejects.toThrow("start the container");
  });

  test("masked and read-only paths hold also where another container makes links in a shared volume (CVE-2025-31133)", async () => {
    const volume = join(scratch, "links");
    await mkdir(volume, { recursive: true });
    await symlink("/proc/sys/kernel/core_pattern", join(volume, "pattern"));
    const paths = { masked_paths: ["/proc/version", "/proc/no-such"], readonly_paths: ["/proc/sys"] };
    const said = await output(
      "(echo x > /v/pattern) 2>&1; wc -c < /proc/version; stat -c %t:%T /proc/version",
      {
        mounts: [{ host_path: volume, container_path: "/v" }],
        linux: { security_context: paths },
      },
    );
    expect(said).toContain("Read-only file system");
    expect(said).toContain("\n0\n1:3");
  });

  test("links of an image lead no file, mount or volume of a pod out of its root (CVE-2022-23648)", async () => {
    const outside = join(scratch, "outside");
    await mkdir(outside);
    const tar = tarOf([
      { path: "etc", type: "folder" },
      { path: "etc/passwd", type: "symlink", to: join(outside, "passwd") },
      { path: "etc/resolv.conf", type: "symlink", to: join(outside, "resolv.conf") },
      { path: "etc/hostname", type: "symlink", to: `../../../../../..${outside}/hostname` },
      { path: "etc/hosts", type: "symlink", to: "/proc/self/cwd/../../../../../../../tmp/bh-hosts" },
      { path: "data", type: "symlink", to: outside },
      { path: "dev", type: "symlink", to: outside },
    ]);
    const layer = { diffId: digestOf(tar), blob: blobOf(mediaTypes.tar, tar) };
    const volumes = { Volumes: { "/data/volume": {}, "/../../../outside": {} }, Cmd: ["/none"] };
    const image = imageOf([layer], volumes as RunConfig);
    await pushImage(registry.url, { names: ["hostile/links:1"], layers: [layer], ...image });
    await daemon.crictl("pull", "registry.k8s.io/hostile/links:1");
    const fields = {
      image: { image: "registry.k8s.io/hostile/links:1" },
      mounts: [{ host_path: scratch, container_path: "/data/mount", readonly: true }],
    };
    // Its program is not there; all mounts were made before that is found out.
    await expect(withContainer(fields, async () => {})).rejects.toThrow();
    expect(await readdir(outside)).toEqual([]);
    expect(existsSync("/tmp/bh-hosts")).toBe(false);
  });

  test("more output of an exec than 16 MiB is cut off, and the daemon keeps little of it (CVE-2022-31030)", async () => {
    await withContainer({}, async (id) => {
      const reply = await call.execSync(
        create(ExecSyncRequestSchema, {
          containerId: id,
          cmd: ["sh", "-c", "head -c 80000000 /dev/zero; exit 3"],
        }),
        AbortSignal.timeout(30_000),
      );
      expect(reply.exitCode).toBe(3);
      expect(reply.stdout.length).toBeGreaterThan(15 * 1024 * 1024);
      expect(reply.stdout.length).toBeLessThanOrEqual(16 * 1024 * 1024);
    });
  });

  test("a variable with line breaks stays a variable (CVE-2022-4318)", async () => {
    const envs = [{ key: "HOME", value: Buffer.from("/x\nevil:x:0:0::/:/bin/sh").toString("base64") }];
    expect(await output("grep -c evil /etc/passwd; printenv HOME | wc -l", { envs })).toBe("0\n2\n");
  });
});

describe("fields of a container", () => {
  test("rlimits, oom_score_adj and no_new_privs are those that this process may give", async () => {
    const said = await output("cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status; ulimit -n", {
      linux: { resources: { oom_score_adj: -900 }, security_context: { no_new_privs: true } },
    });
    const [adjusted, privileges] = said.split("\n");
    // As low as we are ourselves, or as asked where CAP_SYS_RESOURCE is held.
    expect(Number(adjusted)).toBeLessThanOrEqual(0);
    expect(privileges).toMatch(/1$/);
  });

  test("groups are the image's and the pod's under Merge, the pod's alone under Strict", async () => {
    const groups = (policy: number) =>
      output("id -G", {
        linux: {
          security_context: {
            run_as_user: { value: 0 },
            supplemental_groups: ["1234"],
            supplemental_groups_policy: policy,
          },
        },
      });
    expect((await groups(1)).trim()).toBe("0 1234");
    expect((await groups(0)).trim().split(" ")).toEqual(expect.arrayContaining(["0", "1234"]));
  });

  test("mount options of a volume hold", async () => {
    const volume = join(scratch, "options");
    await mkdir(volume, { recursive: true });
    const mounts = [{ host_path: volume, container_path: "/v", mount_options: ["noexec", "nosuid"] }];
    expect(await output("cp /bin/busybox /v/ls; /v/ls 2>&1; grep ' /v ' /proc/mounts", { mounts })).toMatch(
      /Permission denied[\s\S]*nosuid[\s\S]*noexec/,
    );
  });

  test.each([0, 300_000])("a part of an image is a volume, also in user namespace %i", async (hostId) => {
    const ids = hostId === 0 ? {} : userns(hostId);
    const volume = (image_sub_path: string) => ({
      mounts: [{ container_path: "/image", image: { image: busybox }, image_sub_path }],
    });
    const script = "stat -c %u /image/busybox; touch /image/x 2>&1 | tail -c 22";
    expect(await output(script, volume("bin"), ids)).toBe("0\nRead-only file system\n");
    expect(await refusal(volume("no/such"), ids)).toContain("ImageVolumeMountFailed");
    expect(await refusal(volume("../../../../etc/hostname"), ids)).toContain("ImageVolumeMountFailed");
  });

  test("recursive read-only reaches the mounts below a volume", async () => {
    const volume = join(scratch, "tree");
    await mkdir(join(volume, "below"), { recursive: true });
    await run(["mount", "-t", "tmpfs", "tmpfs", join(volume, "below")]);
    try {
      const mount = { host_path: volume, container_path: "/v", readonly: true };
      const script = "touch /v/below/x 2>&1 && echo written";
      expect(await output(script, { mounts: [mount] })).toBe("written\n");
      expect(
        await output(`${script}; true`, { mounts: [{ ...mount, recursive_read_only: true }] }),
      ).toContain("Read-only");
    } finally {
      await run(["umount", join(volume, "below")]);
    }
  });

  test("propagation works in both directions where the node's mount is shared, and is refused where it is not", async () => {
    const volume = join(scratch, "shared");
    await mkdir(volume, { recursive: true });
    await run(["mount", "-t", "tmpfs", "tmpfs", volume]);
    try {
      await run(["mount", "--make-private", volume]);
      const bidirectional = { host_path: volume, container_path: "/v", propagation: 2 };
      expect(await refusal({ mounts: [bidirectional] })).toContain("is not a shared mount");
      await run(["mount", "--make-shared", volume]);
      await withContainer({ mounts: [{ ...bidirectional, propagation: 1 }] }, async (id) => {
        await mkdir(join(volume, "later"));
        await run(["mount", "-t", "tmpfs", "tmpfs", join(volume, "later")]);
        expect(await execute(id, "cat /proc/self/mountinfo")).toContain(" /v/later ");
        await run(["umount", join(volume, "later")]);
      });
    } finally {
      await run(["umount", "-R", volume]);
    }
  });

  test("limits are changed in place, and what the request leaves out stays", async () => {
    const limits = { cpu_shares: 512, cpu_period: 100000, cpu_quota: 50000, memory_limit_in_bytes: 67108864 };
    await withContainer({ linux: { resources: limits } }, async (id) => {
      const of = async (): Promise<Record<string, unknown>> =>
        (
          JSON.parse(await daemon.crictl("inspect", id)) as {
            status: { resources: { linux: Record<string, unknown> } };
          }
        ).status.resources.linux;
      await daemon.crictl("update", "--memory", "134217728", "--cpuset-cpus", "0", id);
      expect(await of()).toMatchObject({
        memoryLimitInBytes: "134217728",
        cpuShares: "512",
        cpuQuota: "50000",
        cpusetCpus: "0",
      });
      const limit = await execute(
        id,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpuset/cpuset.cpus",
      );
      expect(limit).toBe("134217728\n0\n");
      expect((await daemon.tryCrictl("update", "--cpuset-cpus", "x", id)).stderr).toContain("cpuset_cpus");
    });
  });
});

test("a pod without a cgroup_parent has the figures of its own containers, not of all such pods", async () => {
  const usageOf = async (containerId: string): Promise<number> => {
    const pods = JSON.parse(await daemon.crictl("statsp", "-o", "json")) as {
      stats: {
        attributes: { id: string };
        linux: { memory: { usageBytes: { value: string } }; containers: { attributes: { id: string } }[] };
      }[];
    };
    const mine = pods.stats.find(({ linux }) =>
      linux.containers.some((each) => each.attributes.id === containerId),
    );
    return Number(mine?.linux.memory.usageBytes.value);
  };
  await withContainer({}, async (large) => {
    await withContainer({}, async (small) => {
      await execute(large, "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null");
      await expect.poll(() => usageOf(large), { timeout: 30_000 }).toBeGreaterThan(40 << 20);
      expect(await usageOf(small)).toBeGreaterThan(0);
      expect(await usageOf(small)).toBeLessThan(20 << 20);
    });
  });
});

describe("CheckpointContainer", () => {
  test("is refused with CRIU's own reason where the kernel or the node cannot, and leaves the container and no file", async () => {
    await withContainer({}, async (id) => {
      const location = join(scratch, "checkpoint.tar");
      const answer = await call
        .checkpointContainer(
          create(CheckpointContainerRequestSchema, { containerId: id, location }),
          AbortSignal.timeout(30_000),
        )
        .then(() => "done", String);
      // On a node with a CRIU that knows the kernel the archive is there.
      if (answer === "done") expect((await stat(location)).size).toBeGreaterThan(0);
      else expect(answer).toMatch(/Cannot checkpoint container "\w+": CRIU (is not installed|cannot work)/);
      expect((await readdir(scratch)).filter((name) => name.startsWith(".checkpoint"))).toEqual([]);
      expect(await execute(id, "echo alive")).toBe("alive\n");
    });
  });
});

test("nothing is left of all these containers", async () => {
  expect(await remains(daemon)).toEqual([]);
});

describe.each(["alone", "behind a front that has the same engine on both sides"])("%s", (how) => {
  const isFronted = how !== "alone";
  const soon = AbortSignal.timeout(120_000);
  let client: CriClient;
  let services: CriServices;
  beforeAll(() => {
    client = connectCri(daemon.socket);
    // Both sides have real lists, so that the front's own merges and filters are at work.
    services = client as unknown as CriServices;
    if (!isFronted) return;
    services = front(services, client, {
      ...{ hasHandler: () => true, hasPod: () => true, hasContainer: () => true, hasPodUid: () => false },
      ...{ sameDisk: () => true, stateDir: join(scratch, "front"), log: { warn: () => {} } },
    });
  });
  afterAll(() => client[Symbol.dispose]());

  const idsOf = async <M>(stream: AsyncIterable<M>, ids: (message: M) => (string | undefined)[]) =>
    (await Array.fromAsync(stream)).flatMap(ids).sort();

  /** What list and stream of each kind say, of everything or of one pod. */
  const kinds = {
    podSandboxes: (id?: string) => {
      const filter = id === undefined ? {} : { filter: { id } };
      const { listPodSandbox: list, streamPodSandboxes: stream } = RuntimeService.method;
      const listed = services.runtime.listPodSandbox(create(list.input, filter), soon);
      const streamed = services.runtime.streamPodSandboxes(create(stream.input, filter), soon);
      return {
        list: listed.then(({ items }) => items.map((each) => each.id).sort()),
        stream: idsOf(streamed, (message) => message.podSandboxes.map((each) => each.id)),
      };
    },
    containers: (id?: string) => {
      const filter = id === undefined ? {} : { filter: { podSandboxId: id } };
      const { listContainers: list, streamContainers: stream } = RuntimeService.method;
      const listed = services.runtime.listContainers(create(list.input, filter), soon);
      const streamed = services.runtime.streamContainers(create(stream.input, filter), soon);
      return {
        list: listed.then(({ containers }) => containers.map((each) => each.id).sort()),
        stream: idsOf(streamed, (message) => message.containers.map((each) => each.id)),
      };
    },
    containerStats: (id?: string) => {
      const filter = id === undefined ? {} : { filter: { podSandboxId: id } };
      const { listContainerStats: list, streamContainerStats: stream } = RuntimeService.method;
      const listed = services.runtime.listContainerStats(create(list.input, filter), soon);
      const streamed = services.runtime.streamContainerStats(create(stream.input, filter), soon);
      return {
        list: listed.then(({ stats }) => stats.map((each) => each.attributes?.id).sort()),
        stream: idsOf(streamed, (message) => message.containerStats.map((each) => each.attributes?.id)),
      };
    },
    podSandboxStats: (id?: string) => {
      const filter = id === undefined ? {} : { filter: { id } };
      const { listPodSandboxStats: list, streamPodSandboxStats: stream } = RuntimeService.method;
      const listed = services.runtime.listPodSandboxStats(create(list.input, filter), soon);
      const streamed = services.runtime.streamPodSandboxStats(create(stream.input, filter), soon);
      return {
        list: listed.then(({ stats }) => stats.map((each) => each.attributes?.id).sort()),
        stream: idsOf(streamed, (message) => message.podSandboxStats.map((each) => each.attributes?.id)),
      };
    },
  };

  test("each stream brings what its list brings, all of it or by a filter", async () => {
    const [one, two] = [await runPod(), await runPod()];
    const perPod = isFronted ? 2 : 1;
    try {
      for (const pod of [one, two]) await cri.start(await createIn(pod, "exec sleep 1000", {}));
      for (const [kind, ask] of Object.entries(kinds)) {
        const all = ask();
        expect(await all.list, kind).toHaveLength(2 * perPod);
        expect(await all.stream, kind).toEqual(await all.list);
        const ofOne = ask(one.id);
        expect(await ofOne.list, kind).toHaveLength(perPod);
        expect(await ofOne.stream, kind).toEqual(await ofOne.list);
      }
      const { listPodSandboxMetrics: list, streamPodSandboxMetrics: stream } = RuntimeService.method;
      const { podMetrics } = await services.runtime.listPodSandboxMetrics(create(list.input), soon);
      const metrics = services.runtime.streamPodSandboxMetrics(create(stream.input), soon);
      const streamed = await idsOf(metrics, (message) =>
        message.podSandboxMetrics.map((each) => each.podSandboxId),
      );
      expect(podMetrics).toHaveLength(2 * perPod);
      expect(streamed).toEqual(podMetrics.map((each) => each.podSandboxId).sort());
    } finally {
      for (const { id } of [one, two]) await removePod(id);
    }
  });

  test.each([
    [undefined, 1],
    [busybox, 1],
    ["registry.example/nothing:1", 0],
  ])("the stream of images brings what the list brings (%s)", async (image, count) => {
    const filter = image === undefined ? {} : { filter: { image: { image } } };
    const { listImages, streamImages } = ImageService.method;
    const { images } = await services.image.listImages(create(listImages.input, filter), soon);
    const streamed = services.image.streamImages(create(streamImages.input, filter), soon);
    expect(images.filter(({ repoTags }) => repoTags.includes(busybox))).toHaveLength(count);
    expect(await idsOf(streamed, (message) => message.images.map(({ id }) => id))).toEqual(
      images.map(({ id }) => id).sort(),
    );
  });

  test("UpdatePodSandboxResources keeps a pod's figures, which are there after a kill, and refuses a pod that is none", async () => {
    const { updatePodSandboxResources: update, podSandboxStatus: status } = RuntimeService.method;
    const pod = await runPod();
    try {
      const figures = { overhead: { cpuShares: 11n }, resources: { memoryLimitInBytes: 77_000_001n } };
      const request = create(update.input, { podSandboxId: pod.id, ...figures });
      await services.runtime.updatePodSandboxResources(request, soon);
      await daemon.end("SIGKILL");
      await daemon.start();
      const { info } = await services.runtime.podSandboxStatus(
        create(status.input, { podSandboxId: pod.id, verbose: true }),
        soon,
      );
      expect(JSON.parse(info.info ?? "")).toMatchObject({
        config: { linux: { overhead: { cpuShares: "11" }, resources: { memoryLimitInBytes: "77000001" } } },
      });
    } finally {
      await removePod(pod.id);
    }
    await expect(
      services.runtime.updatePodSandboxResources(create(update.input, { podSandboxId: pod.id }), soon),
    ).rejects.toMatchObject({ code: "not-found" });
  });
});
