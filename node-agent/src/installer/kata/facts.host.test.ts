import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { execute, mountedHost } from "../host.ts";
import { bootGuest, hugePagesOf } from "./facts.ts";

/** The probe of KVM where there is none; where KVM boots guests: test/vm/cgroup-v2.vm.test.ts. */

let dir: string;
let probe: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bulkhead-kvm-probe-"));
  probe = join(dir, "kvm-probe");
  const compile = ["cc", "-Os", "-static", "-o", probe, join(import.meta.dirname, "kvm-probe.c")];
  expect(await execute(compile, { signal: AbortSignal.timeout(60_000) })).toMatchObject({ code: 0 });
});
afterAll(() => rm(dir, { recursive: true, force: true }));

test("what is no KVM, or is not there, is told in the kernel's words", async () => {
  expect(await bootGuest(probe, "/dev/null")).toEqual({
    runs: false,
    why: "KVM_GET_API_VERSION: Inappropriate ioctl for device",
  });
  expect(await bootGuest(probe, join(dir, "none"))).toEqual({
    runs: false,
    why: `${join(dir, "none")}: No such file or directory`,
  });
  expect((await bootGuest(join(dir, "no-probe"), "/dev/kvm")).why).toContain("ENOENT");
});

test("huge pages are there where hugetlbfs is mounted and some are set aside", async () => {
  const root = await mkdtemp(join(tmpdir(), "bulkhead-hugepages-"));
  const host = mountedHost(root, "/bin/busybox");
  const mountPoint = join(root, "dev/hugepages");
  const signal = AbortSignal.timeout(30_000);
  const pool = join(root, "sys/kernel/mm/hugepages/hugepages-2048kB");
  for (const each of [mountPoint, pool]) await mkdir(each, { recursive: true });
  expect(await hugePagesOf(host)).toEqual({
    mebibytes: 0,
    problem: expect.stringContaining("no hugetlbfs is mounted at /dev/hugepages"),
  });
  const mount = ["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", mountPoint];
  expect(await execute(mount, { signal })).toMatchObject({ code: 0 });
  try {
    await writeFile(join(pool, "nr_hugepages"), "0\n");
    expect(await hugePagesOf(host)).toEqual({
      mebibytes: 2,
      problem: expect.stringContaining("no huge pages of 2048 KiB are set aside"),
    });
    await writeFile(join(pool, "nr_overcommit_hugepages"), "4\n");
    expect(await hugePagesOf(host)).toEqual({ mebibytes: 2, problem: "" });
  } finally {
    await execute(["umount", mountPoint], { signal });
    await rm(root, { recursive: true, force: true });
  }
});
