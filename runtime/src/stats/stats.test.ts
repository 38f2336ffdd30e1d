import { describe, expect, test } from "vitest";
import { cgroupAt, everywhere, parentOf, parseCgroups, parseLayout, pathOf } from "./layout.ts";
import { parseOomKills, parseV1, parseV2 } from "./usage.ts";

const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /outer /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:40 / /mnt/with\\040space rw - ext4 /dev/vda rw`;

describe("layout", () => {
  test("is version 1 when controllers are mounted, also beside a unified hierarchy", () => {
    expect(parseLayout(hybrid)).toEqual({
      version: 1,
      mounts: {
        cpu: { mountpoint: "/sys/fs/cgroup/cpu,cpuacct", root: "/" },
        cpuacct: { mountpoint: "/sys/fs/cgroup/cpu,cpuacct", root: "/" },
        memory: { mountpoint: "/sys/fs/cgroup/memory", root: "/outer" },
        "name=systemd": { mountpoint: "/sys/fs/cgroup/systemd", root: "/" },
      },
      beside: { mountpoint: "/sys/fs/cgroup/unified", root: "/" },
    });
  });

  test("is version 2 with one hierarchy", () => {
    expect(parseLayout("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate")).toEqual({
      version: 2,
      mounts: { "": { mountpoint: "/sys/fs/cgroup", root: "/" } },
    });
  });

  test("gives a process's directories, less what the mount does not show", () => {
    const text = "9:memory:/outer/pod/c\n8:cpu,cpuacct:/pod/c\n1:name=systemd:/pod/c\n0::/\n";
    expect(parseCgroups(text, parseLayout(hybrid))).toEqual({
      memory: "/sys/fs/cgroup/memory/pod/c",
      cpu: "/sys/fs/cgroup/cpu,cpuacct/pod/c",
      cpuacct: "/sys/fs/cgroup/cpu,cpuacct/pod/c",
      "name=systemd": "/sys/fs/cgroup/systemd/pod/c",
    });
  });

  test.each([
    ["a path's parent", "/kubepods/burstable/pod1/c1", "/kubepods/burstable/pod1"],
    ["no pod's cgroup directly below the root", "/c1", undefined],
    ["no pod's cgroup without a path", "", undefined],
    [
      "a systemd slice by the names of its parents",
      "kubepods-burstable-pod1.slice:cri:c1",
      "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
    ],
    ["the root slice is nobody's", "-.slice:cri:c1", undefined],
  ])("takes %s", (_, path, parent) => expect(parentOf(path)).toBe(parent));

  test.each<[string, string, string | undefined]>([
    ["a path", "/kubepods/pod1/c1", "/kubepods/pod1/c1"],
    [
      "a scope",
      "kubepods-besteffort.slice:bulkhead:c1",
      "/kubepods.slice/kubepods-besteffort.slice/bulkhead-c1.scope",
    ],
    ["a scope at the root", "-.slice:bulkhead:c1", "/bulkhead-c1.scope"],
    ["neither", "c1", undefined],
  ])("finds the cgroup of %s", (_, asked, path) => expect(pathOf(asked)).toBe(path));

  test("gives the directories of a path", () => {
    const layout = parseLayout("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
    expect(cgroupAt("/pod1", layout)).toEqual({ "": "/sys/fs/cgroup/pod1" });
    expect(everywhere("/pod1", layout)).toEqual({ "": "/sys/fs/cgroup/pod1" });
    expect(everywhere("/pod1", parseLayout(hybrid))).toMatchObject({
      "name=systemd": "/sys/fs/cgroup/systemd/pod1",
      "": "/sys/fs/cgroup/unified/pod1",
    });
  });
});

describe("usage", () => {
  test("of version 1: working set is usage without inactive file pages, with what is below", () => {
    expect(
      parseV1({
        "cpuacct.usage": "123456789\n",
        "memory.usage_in_bytes": "1048576\n",
        "memory.limit_in_bytes": "33554432\n",
        "memory.stat":
          "rss 1\ninactive_file 2\npgfault 3\ntotal_rss 700000\ntotal_inactive_file 48576\ntotal_pgfault 40\ntotal_pgmajfault 5\n",
        "pids.current": "3\n",
      }),
    ).toEqual({
      cpuNanos: 123456789n,
      memoryUsage: 1048576n,
      memoryWorkingSet: 1000000n,
      memoryRss: 700000n,
      pageFaults: 40n,
      majorPageFaults: 5n,
      memoryLimit: 33554432n,
      pids: 3n,
    });
  });

  test("of version 1 without a limit has limit 0", () => {
    expect(parseV1({ "memory.limit_in_bytes": "9223372036854771712\n" }).memoryLimit).toBe(0n);
  });

  test("of version 2", () => {
    expect(
      parseV2({
        "cpu.stat": "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\n",
        "memory.current": "5000\n",
        "memory.max": "max\n",
        "memory.stat": "anon 3000\nfile 2000\ninactive_file 6000\npgfault 12\npgmajfault 1\n",
        "pids.current": "2\n",
      }),
    ).toEqual({
      cpuNanos: 2_500_000n,
      memoryUsage: 5000n,
      memoryWorkingSet: 0n,
      memoryRss: 3000n,
      pageFaults: 12n,
      majorPageFaults: 1n,
      memoryLimit: 0n,
      pids: 2n,
    });
  });

  test("counts kills, not occasions, of the OOM killer", () => {
    expect(parseOomKills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")).toBe(2n);
    expect(parseOomKills("low 0\nhigh 0\nmax 9\noom 3\noom_kill 0\n")).toBe(0n);
  });
});
