import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { CgroupLayout } from "../../stats/layout.ts";
import { requireHugepages } from "./huge-pages.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bh-huge-"));
  mkdirSync(join(root, "pod"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const v1 = (): CgroupLayout => ({ version: 1, mounts: { hugetlb: { mountpoint: root, root: "/" } } });
const v2 = (): CgroupLayout => ({ version: 2, mounts: { "": { mountpoint: root, root: "/" } } });
const MiB = 2 ** 20;

type Size = { limitMiB?: number; ownMiB?: number; pageMiB?: number };
const check = (layout: CgroupLayout, { limitMiB = 0, ownMiB, pageMiB = 2 }: Size = {}): void =>
  requireHugepages(
    { hugepages: { pageMiB, machineMiB: 512 } },
    {
      annotations: {
        "io.kubernetes.cri.sandbox-memory": String(limitMiB * MiB),
        ...(ownMiB && { "io.katacontainers.config.hypervisor.default_memory": String(ownMiB) }),
      },
      linux: { namespaces: [], cgroupsPath: "/pod/sandbox" },
    },
    layout,
  );
const allow = (file: string, text: string | number): void =>
  writeFileSync(join(root, "pod", file), `${text}\n`);

test("a machine that its pod's cgroup has the pages for is started", () => {
  allow("hugetlb.2MB.limit_in_bytes", 768 * MiB);
  check(v1());
  check(v1(), { limitMiB: 256 });
  allow("hugetlb.1GB.max", 1024 * MiB);
  check(v2(), { pageMiB: 1024 });
});

test("one that it has not is refused, with what it takes and what to ask for", () => {
  allow("hugetlb.2MB.limit_in_bytes", 512 * MiB);
  expect(() => check(v1(), { limitMiB: 256 })).toThrow(
    /takes 768 MiB .*512 of the profile's, 256 for .* may have 512 MiB: .* hugepages-2Mi/,
  );
  allow("hugetlb.1GB.max", 0);
  expect(() => check(v2(), { pageMiB: 1024 })).toThrow(/may have 0 MiB: .* hugepages-1Gi/);
});

test("a pod's own choice of memory counts instead of the profile's", () => {
  allow("hugetlb.2MB.max", 512 * MiB);
  expect(() => check(v2(), { ownMiB: 1024 })).toThrow(/takes 1024 MiB/);
  check(v2(), { ownMiB: 256, limitMiB: 256 });
});

test("where nothing says how many pages there may be, the hypervisor finds out", () => {
  check(v1());
  check({ version: 1, mounts: {} });
  allow("hugetlb.2MB.max", "max");
  check(v2());
});
