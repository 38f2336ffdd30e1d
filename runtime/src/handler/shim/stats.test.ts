import { create, toBinary } from "@bufbuild/protobuf";
import { AnySchema } from "@bufbuild/protobuf/wkt";
import { MetricsSchema as MetricsV1 } from "@bulkhead/lib/gen/cgroups_v1_pb.js";
import { MetricsSchema as MetricsV2 } from "@bulkhead/lib/gen/cgroups_v2_pb.js";
import { expect, test } from "vitest";
import { parseCgroups, usageOf } from "./stats.ts";

test("metrics of cgroup v1 are nanoseconds and bytes, and no limit is 0", () => {
  const metrics = create(MetricsV1, {
    cpu: { usage: { total: 7n } },
    memory: { usage: { usage: 100n, limit: 0x7ffffffffffff000n }, totalInactiveFile: 30n, totalRss: 50n },
    pids: { current: 3n },
  });
  const stats = create(AnySchema, {
    typeUrl: "io.containerd.cgroups.v1.Metrics",
    value: toBinary(MetricsV1, metrics),
  });
  expect(usageOf(stats, 1n)).toMatchObject({
    timestamp: 1n,
    cpuNanos: 7n,
    memoryUsage: 100n,
    memoryWorkingSet: 70n,
    memoryRss: 50n,
    memoryLimit: 0n,
    pids: 3n,
  });
});

test("metrics of cgroup v2 are microseconds, under a type URL with a host too", () => {
  const metrics = create(MetricsV2, {
    cpu: { usageUsec: 5n },
    memory: { usage: 10n, usageLimit: 0xffffffffffffffffn, inactiveFile: 20n, anon: 4n },
  });
  const stats = create(AnySchema, {
    typeUrl: "type.googleapis.com/io.containerd.cgroups.v2.Metrics",
    value: toBinary(MetricsV2, metrics),
  });
  expect(usageOf(stats, 1n)).toMatchObject({
    cpuNanos: 5000n,
    memoryUsage: 10n,
    memoryWorkingSet: 0n,
    memoryRss: 4n,
    memoryLimit: 0n,
  });
});

test("metrics of another kind are not guessed at", () => {
  expect(usageOf(create(AnySchema, { typeUrl: "example.com/Other" }), 1n)).toBeUndefined();
});

test("a process's cgroups are found with v1, with v2, and with both mounted", () => {
  const hybrid = "12:cpu,cpuacct:/a/b\n9:pids:/p\n4:memory:/m\n0::/u\n";
  expect(parseCgroups(hybrid, "/sys/fs/cgroup")).toEqual({
    version: 1,
    memory: "/sys/fs/cgroup/memory/m",
    cpu: "/sys/fs/cgroup/cpuacct/a/b",
    pids: "/sys/fs/cgroup/pids/p",
  });
  expect(parseCgroups("0::/kubepods/pod1\n", "/sys/fs/cgroup")).toEqual({
    version: 2,
    memory: "/sys/fs/cgroup/kubepods/pod1",
    cpu: "/sys/fs/cgroup/kubepods/pod1",
    pids: "/sys/fs/cgroup/kubepods/pod1",
  });
  expect(parseCgroups("", "/sys/fs/cgroup")).toBeUndefined();
});
