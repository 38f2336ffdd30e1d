import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ensureTestImages } from "../images/build.ts";
import { startRegistry } from "../images/registry.ts";
import { type Machine, startMachine } from "./machine.ts";
import { killDaemon, podsOn, untilServed } from "./pods.ts";

/**
 * The runtime on a kernel with cgroup v2 alone, AppArmor and KVM, under systemd, as users' nodes are; this machine's own
 * kernel has the v1 controllers, no AppArmor, and a KVM that boots nothing. What is asserted is what the kernel's files say.
 */

const image = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
const undo = new AsyncDisposableStack();
let machine: Machine;

beforeAll(async () => {
  const dir = await mkdtemp(join(tmpdir(), "bulkhead-vm-registry-"));
  undo.defer(() => rm(dir, { recursive: true, force: true }));
  const registry = undo.use(await startRegistry({ dir }));
  await ensureTestImages(registry.host);
  machine = undo.use(await startMachine(registry.host, AbortSignal.timeout(900_000)));
  await machine.sh("for i in $(seq 90); do crictl version >/dev/null 2>&1 && exit 0; sleep 1; done; exit 1");
  await machine.sh(`crictl pull ${image}`);
});
afterAll(() => undo.disposeAsync());

const { json, file, running, cgroupOf, exec, remove } = podsOn(() => machine, image);

test("the kernel has cgroup v2 alone, and the runtime tells kubelet that systemd makes the cgroups", async () => {
  expect(await machine.sh("stat -fc %T /sys/fs/cgroup")).toBe("cgroup2fs\n");
  const config = await json<{ linux: { cgroupDriver: string } }>(
    "crictl runtime-config 2>/dev/null || true",
  ).catch(() => undefined);
  // This crictl may have no command for RuntimeConfig: then the unit of a container below says it.
  if (config !== undefined) expect(config.linux.cgroupDriver).toBe("SYSTEMD");
});

describe("With the systemd driver", () => {
  afterAll(() => machine.trySh("systemctl stop 'kubepods-burstable-pod*.slice'"));

  test("a container is a scope in the pod's slice, with every limit where v2 has it", async () => {
    const { pod, id, slice } = await running({
      cpu_period: 100_000,
      cpu_quota: 50_000,
      cpu_shares: 512,
      memory_limit_in_bytes: 64 << 20,
      memory_swap_limit_in_bytes: 64 << 20,
      cpuset_cpus: "0",
      hugepage_limits: [{ page_size: "2MB", limit: 4 << 20 }],
      unified: { "memory.high": `${32 << 20}`, "pids.max": "77" },
    });
    const cgroup = await cgroupOf(id);
    expect(cgroup).toBe(
      `/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/${slice}/bulkhead-${id}.scope`,
    );
    const unit = cgroup.split("/").at(-1) ?? "";
    expect((await machine.sh(`systemctl is-active ${unit}`)).trim()).toBe("active");
    const files = [
      "cpu.max",
      "memory.max",
      "memory.swap.max",
      "memory.high",
      "pids.max",
      "cpuset.cpus",
      "hugetlb.2MB.max",
    ];
    const values = await machine.sh(files.map((name) => `cat ${cgroup}/${name}`).join("\n"));
    expect(values.trim().split("\n")).toEqual([
      "50000 100000",
      `${64 << 20}`,
      "0",
      `${32 << 20}`,
      "77",
      "0",
      `${4 << 20}`,
    ]);
    // runc's own conversion of shares to a weight; 1024 shares are 39 or 100 by its version.
    const weight = Number(await file(`${cgroup}/cpu.weight`));
    expect(weight).toBeGreaterThan(0);
    expect(weight).toBeLessThan(100);
    // systemd knows the limits as well: a reload of it does not take them away.
    await machine.sh("systemctl daemon-reload");
    expect(await file(`${cgroup}/memory.max`)).toBe(`${64 << 20}`);
    // The container sees its own cgroup as the root.
    expect(await exec(id, "cat /proc/self/cgroup")).toBe("0::/");
    expect(await exec(id, "cat /sys/fs/cgroup/memory.max")).toBe(`${64 << 20}`);

    await machine.sh(`crictl update --memory ${48 << 20} --cpu-quota 20000 ${id}`);
    expect(await file(`${cgroup}/memory.max`)).toBe(`${48 << 20}`);
    expect(await file(`${cgroup}/cpu.max`)).toBe("20000 100000");

    await remove(pod);
    expect((await machine.trySh(`ls -d ${cgroup}`)).code).not.toBe(0);
    expect((await machine.trySh(`systemctl is-active ${unit}`)).output.trim()).toBe("inactive");
  });

  test("stats are what the cgroup says", async () => {
    const { pod, id } = await running(
      { memory_limit_in_bytes: 96 << 20 },
      {
        command: [
          "sh",
          "-c",
          "head -c 20000000 /dev/zero | tail -c 20000000 >/dev/null; dd if=/dev/zero of=/f bs=1M count=8; sleep 3600",
        ],
      },
    );
    const cgroup = await cgroupOf(id);
    await machine.sh("sleep 5");
    const said = await json<{
      stats: {
        memory: { usageBytes: { value: string }; workingSetBytes: { value: string } };
        cpu: { usageCoreNanoSeconds: { value: string } };
      }[];
    }>(`crictl stats -o json --id ${id} 2>/dev/null`);
    const [current, usage] = (
      await machine.sh(`cat ${cgroup}/memory.current; sed -n 's/usage_usec //p' ${cgroup}/cpu.stat`)
    )
      .trim()
      .split("\n")
      .map(Number);
    const stats = said.stats[0];
    const within = (value: number, of: number, part: number): void => {
      expect(value).toBeGreaterThan(of * (1 - part));
      expect(value).toBeLessThan(of * (1 + part));
    };
    within(Number(stats?.memory.usageBytes.value), current ?? 0, 0.3);
    within(Number(stats?.cpu.usageCoreNanoSeconds.value), (usage ?? 0) * 1000, 0.5);
    expect(Number(stats?.memory.workingSetBytes.value)).toBeLessThanOrEqual(
      Number(stats?.memory.usageBytes.value),
    );
    await remove(pod);
  });

  test("a container over its limit ends as OOMKilled with 137", async () => {
    const { pod, id } = await running(
      { memory_limit_in_bytes: 16 << 20, memory_swap_limit_in_bytes: 16 << 20 },
      { command: ["sh", "-c", "sleep 1; tail /dev/zero"] },
    );
    const status = await json<{ status: { reason: string; exitCode: number; state: string } }>(
      `for i in $(seq 60); do crictl inspect ${id} 2>/dev/null | grep -q CONTAINER_EXITED && break; sleep 1; done; crictl inspect -o json ${id} 2>/dev/null`,
    );
    expect(status.status).toMatchObject({ state: "CONTAINER_EXITED", reason: "OOMKilled", exitCode: 137 });
    await remove(pod);
  });

  test("containers live through a restart of the daemon's unit and a kill -9 of it", async () => {
    const { pod, id } = await running({});
    const cgroup = await cgroupOf(id);
    const before = await file(`${cgroup}/cgroup.procs`);
    await machine.sh(`systemctl restart bulkhead-runtime.service; ${untilServed}`);
    expect(await file(`${cgroup}/cgroup.procs`)).toBe(before);
    await machine.sh(killDaemon);
    expect(await file(`${cgroup}/cgroup.procs`)).toBe(before);
    expect(await exec(id, "echo alive")).toBe("alive");
    await remove(pod);
  });

  test("a gVisor pod's sandbox is in the pod's slice and under its limit", async () => {
    const { pod, id, slice } = await running(
      { memory_limit_in_bytes: 256 << 20 },
      { handler: "gvisor", pod: { resources: { memory_limit_in_bytes: 512 << 20 } } },
    );
    expect(await exec(id, "cat /proc/version")).toContain("-gvisor");
    const procs = await machine.sh(
      `find /sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/${slice} -name cgroup.procs | xargs cat | sed 's|.*|/proc/&/comm|' | xargs cat`,
    );
    expect(procs).toContain("exe");
    await remove(pod);
  });

  test("a runc container saved by CRIU goes on in a new pod: count, log, files, a closed connection, exit code", async () => {
    const connected = "nc -l -p 7000 -e sleep 1000 & sleep 1; sleep 1000 | nc 127.0.0.1 7000 &";
    const counting = "i=0; while :; do i=$((i+1)); echo $i; echo $i >/count; sleep 0.2; done";
    const script = `trap "exit 7" TERM; ${connected} ${counting}`;
    const tcp = `cat /proc/net/tcp /proc/net/tcp6 | grep -c " 01 " || true`;
    const command = ["sh", "-c", script];
    const resources = { memory_limit_in_bytes: 64 << 20 };
    const first = await running(resources, { command });
    await machine.sh(
      `for i in $(seq 60); do [ "$(crictl exec -s ${first.id} sh -c '${tcp}' 2>/dev/null)" = 2 ] && exit 0; sleep 1; done; exit 1`,
    );
    await machine.sh(`crictl checkpoint --export /root/saved.tar ${first.id}`);
    const saved = Number(
      await machine.sh(
        "tar xOf /root/saved.tar rootfs-diff.tar >/root/diff.tar; tar xOf /root/diff.tar count",
      ),
    );
    expect(Number(await exec(first.id, "cat /count"))).toBeGreaterThan(saved);
    await remove(first.pod);

    const second = await running(resources, { command, image: "/root/saved.tar" });
    const cgroup = await cgroupOf(second.id);
    expect(cgroup).toContain(`${second.slice}/bulkhead-${second.id}.scope`);
    expect(await file(`${cgroup}/memory.max`)).toBe(`${64 << 20}`);
    const log = `crictl logs ${second.id} 2>/dev/null`;
    await machine.sh(`for i in $(seq 60); do [ $(${log} | wc -l) -gt 2 ] && break; sleep 1; done`);
    const numbers = (await machine.sh(log)).trim().split("\n").map(Number);
    expect(Math.abs((numbers[0] ?? 0) - saved)).toBeLessThan(2);
    expect(numbers.length).toBeGreaterThan(2);
    expect(numbers).toEqual(numbers.map((_, n) => (numbers[0] ?? 0) + n));
    expect(await exec(second.id, `sh -c '${tcp}'`)).toBe("0");
    await machine.sh(`crictl stop -t 20 ${second.id} >/dev/null`);
    const { status } = await json<{ status: object }>(`crictl inspect -o json ${second.id} 2>/dev/null`);
    expect(status).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 7 });
    await remove(second.pod);
  });

  describe("Where AppArmor is on", () => {
    /** Of each command what it says: nothing when nobody minds. */
    const trying = (commands: readonly string[]): string =>
      `sh -c '${["cat /proc/self/attr/current", ...commands.map((each) => `(${each}) 2>&1 || true`)].join("; ")}'`;

    test("the daemon has loaded the default profile, and Status says that AppArmor is on", async () => {
      expect(await file("/sys/kernel/security/apparmor/profiles")).toContain("bulkhead-default (enforce)");
      const { host } = await json<{ host: object }>("crictl info -o json 2>/dev/null");
      expect(host).toMatchObject({ apparmor: true });
    });

    test("who says nothing has it: mounts and the node's settings are out of reach, for CAP_SYS_ADMIN too", async () => {
      const security = { capabilities: { add_capabilities: ["SYS_ADMIN"] } };
      const { pod, id } = await running({}, { security });
      const pid = (await file(`${await cgroupOf(id)}/cgroup.procs`)).split("\n")[0];
      expect(await file(`/proc/${pid}/attr/current`)).toBe("bulkhead-default (enforce)");
      const refused = ["mount -t tmpfs none /tmp", "umount /dev/shm", "echo 0 >/proc/sysrq-trigger"];
      const settings = ["kernel/core_pattern", "vm/swappiness", "kernel/shmmax"].map(
        (name) => `read v </proc/sys/${name}; echo "$v" >/proc/sys/${name}`,
      );
      const said = await exec(id, trying([...refused, ...settings]));
      // kernel.shmmax is the IPC namespace's own.
      expect(said.split("\n")).toEqual([
        "bulkhead-default (enforce)",
        ...[...refused, ...settings.slice(0, 2)].map(() => expect.stringContaining("Permission denied")),
      ]);
      await remove(pod);
    });

    test("a profile of the node's denies what it says, and one that is not loaded is refused", async () => {
      const profile =
        "profile vm-no-passwd flags=(attach_disconnected) { file, signal, deny /etc/passwd r, }";
      await machine.sh(`echo '${profile}' | apparmor_parser --replace`);
      const security = { apparmor: { profile_type: 2, localhost_ref: "vm-no-passwd" } };
      const { pod, id, uid } = await running({}, { security });
      const said = await exec(id, trying(["cat /etc/passwd", "head -1 /etc/group"]));
      expect(said.split("\n")).toEqual([
        "vm-no-passwd (enforce)",
        expect.stringContaining("Permission denied"),
        expect.stringContaining("root"),
      ]);
      const absent = await machine.trySh(
        `sed s/vm-no-passwd/absent/ /tmp/container-${uid}.json >/tmp/absent.json; crictl create ${pod} /tmp/absent.json /tmp/pod-${uid}.json`,
      );
      expect(absent.output).toMatch(/AppArmor profile .*absent.*: it is not loaded on this node/);
      await remove(pod);
    });
  });

  describe("Where KVM boots guests", () => {
    /** A shell looking for a name would find itself. */
    const runscProcesses = "grep -lE '^runsc-' /proc/[0-9]*/cmdline | cut -d/ -f3";
    beforeAll(async () => {
      await machine.sh("modprobe kvm_amd");
    });

    test("the agent finds that it does, takes gVisor's kvm for auto, and its canary stands behind it", async () => {
      const program = "/usr/local/bin/node /opt/bulkhead/test/main.mjs";
      const argv = ["/usr/local/bin/busybox", "/opt/bulkhead/bin/bulkhead-kvm-probe", "/usr/local/bin/runsc"];
      const found = await json<{ verdict: { assertions: string[] } }>(
        `${program} ${argv.join(" ")} ${paths.socket} gvisor-kvm kvm`,
        420_000,
      );
      expect(found).toMatchObject({
        kvm: { runs: true },
        trials: [
          { name: "systrap", works: true },
          { name: "kvm", works: true },
          { name: "ptrace", works: true },
        ],
        auto: { platform: "kvm" },
        verdict: { broken: [] },
        kernelLog: expect.stringContaining("gVisor"),
      });
      expect(found.verdict.assertions).toContain("platform-as-profiled");
    }, 430_000);

    test("a pod on gVisor's kvm runs in a virtual machine of the kernel's: its kernel, its log, exec, its end", async () => {
      const script = 'trap "echo ended; exit 7" TERM; echo started; while :; do sleep 0.1; done';
      const command = ["sh", "-c", script];
      const { pod, id } = await running({}, { handler: "gvisor-kvm", command });
      expect(await exec(id, "cat /proc/version")).toContain("-gvisor");
      const files = await machine.sh(`for each in $(${runscProcesses}); do ls -l /proc/$each/fd; done`);
      expect(files).toContain("anon_inode:kvm-vcpu");
      await machine.sh(`crictl stop -t 60 ${id} >/dev/null`);
      expect(await machine.sh(`crictl logs ${id} 2>/dev/null`)).toBe("started\nended\n");
      const { status } = await json<{ status: object }>(`crictl inspect -o json ${id} 2>/dev/null`);
      expect(status).toMatchObject({ state: "CONTAINER_EXITED", exitCode: 7 });
      await remove(pod);
      expect(await machine.sh(runscProcesses)).toBe("");
    });
  });

  test("nothing is left: no scope, no slice of a pod, no mount", async () => {
    expect(await machine.sh("crictl pods -q 2>/dev/null")).toBe("");
    expect(
      await machine.sh("systemctl list-units --no-legend --type=scope | grep -v init.scope || true"),
    ).toBe("");
    expect(await machine.sh("find /sys/fs/cgroup -name '*.scope' | grep -v init.scope || true")).toBe("");
    expect(await machine.sh("grep -c /run/bulkhead/containers /proc/self/mountinfo || true")).toBe("0\n");
  });
});

describe("With the cgroupfs driver", () => {
  test("a container's cgroup lies below its parent's path, with its limits", async () => {
    await machine.sh(`
      sed -i 's/"conmon"/"cgroupDriver":"cgroupfs","conmon"/' /etc/bulkhead/runtime.yaml
      systemctl restart bulkhead-runtime.service
      ${untilServed}`);
    const { pod, id } = await running(
      { memory_limit_in_bytes: 64 << 20, cpu_quota: 30_000, cpu_period: 100_000 },
      { parent: "/kubepods/pod-fs" },
    );
    const cgroup = await cgroupOf(id);
    expect(cgroup).toBe(`/sys/fs/cgroup/kubepods/pod-fs/${id}`);
    expect(await file(`${cgroup}/memory.max`)).toBe(`${64 << 20}`);
    expect(await file(`${cgroup}/cpu.max`)).toBe("30000 100000");
    await remove(pod);
    expect((await machine.trySh(`ls -d ${cgroup}`)).code).not.toBe(0);
  });

  test("a machine of more huge pages than its pod's cgroup may have is refused before its shim is asked", async () => {
    const handler = {
      ...{ kind: "shim", name: "huge", binary: "/bin/false", wall: "vm" },
      kata: { runtime: "go", rootfs: "virtio-fs", hugepages: { pageMiB: 2, machineMiB: 64 } },
    };
    // As the kubelet makes it for a pod whose RuntimeClass declares 32 MiB.
    await machine.sh(`
      echo '${JSON.stringify(handler)}' >/etc/bulkhead/handlers.d/huge.yaml
      systemctl restart bulkhead-runtime.service
      ${untilServed}
      mkdir -p /sys/fs/cgroup/kubepods/pod-huge
      for parent in /sys/fs/cgroup /sys/fs/cgroup/kubepods; do echo +hugetlb >$parent/cgroup.subtree_control; done
      echo ${32 << 20} >/sys/fs/cgroup/kubepods/pod-huge/hugetlb.2MB.max`);
    await expect(running({}, { handler: "huge", parent: "/kubepods/pod-huge" })).rejects.toThrow(
      /takes 64 MiB of them .* may have 32 MiB/,
    );
    await machine.sh("rm /etc/bulkhead/handlers.d/huge.yaml; rmdir /sys/fs/cgroup/kubepods/pod-huge");
  });
});
