import { kataHandler } from "@bulkhead/lib/api/kata.ts";
import { expect, test } from "vitest";
import { noVm, type VmFacts } from "./node.ts";

const able: VmFacts = {
  arch: "amd64",
  kvm: { runs: true, why: "" },
  vhostVsock: true,
  vhostNet: true,
  nested: false,
  hugePages: { mebibytes: 2, problem: "" },
  missingControllers: [],
  has: () => true,
};
const profile = (kata: object, image?: string) => ({
  handler: { kata: kataHandler.parse(kata) },
  artifact: image === undefined ? { bundled: true } : { image },
});

test("a node with KVM, its devices and an installation serves every hypervisor", () => {
  for (const hypervisor of ["qemu", "cloud-hypervisor", "dragonball", "firecracker"])
    expect(noVm(profile({ hypervisor }), "/opt/kata", able)).toBeUndefined();
});

test.each<[string, Partial<VmFacts>, object, string]>([
  [
    "KVM that boots nothing is told with KVM's own words",
    { kvm: { runs: false, why: "KVM_CREATE_VM: Device or resource busy" } },
    {},
    "KVM boots no guest here: KVM_CREATE_VM: Device or resource busy",
  ],
  [
    "that a node is a virtual machine itself is told with it",
    { kvm: { runs: false, why: "/dev/kvm: No such file or directory" }, nested: true },
    {},
    "KVM boots no guest here, on a node that is a virtual machine itself: /dev/kvm: No such file or directory",
  ],
  [
    "huge pages that are not there are told to who wants them",
    { hugePages: { mebibytes: 0, problem: "no hugetlbfs is mounted at /dev/hugepages" } },
    { shim: "go", hugepages: true },
    "the profile wants huge pages, and no hugetlbfs is mounted at /dev/hugepages",
  ],
  [
    "huge pages of another size than the profile's are told with both",
    { hugePages: { mebibytes: 1024, problem: "" } },
    { shim: "go", hugepages: true },
    "the profile wants huge pages, and those in /dev/hugepages are of 1024 MiB, not of 2: see handler.kata.hugepageSize",
  ],
  ["QEMU needs vhost-vsock", { vhostVsock: false }, {}, "/dev/vhost-vsock is not there"],
  [
    "a controller that cgroup v2 lacks is named",
    { missingControllers: ["cpuset"] },
    {},
    "cgroup v2 has no controller cpuset here",
  ],
  [
    "a file that is not there is named",
    { has: (path) => !path.endsWith("/virtiofsd") },
    {},
    "Kata is not installed at /opt/kata: /opt/kata/libexec/virtiofsd is missing",
  ],
  [
    "of several that are not there the first is named",
    { has: () => false },
    { hypervisor: "firecracker" },
    "Kata is not installed at /opt/kata: /opt/kata/runtime-rs/bin/containerd-shim-kata-v2 and 4 more are missing",
  ],
])("%s", (_what, facts, kata, message) => {
  expect(noVm(profile(kata), "/opt/kata", { ...able, ...facts })).toContain(message);
});

test("the others reach the guest without vhost-vsock, and QEMU serves the network itself without vhost-net", () => {
  const without = {
    ...able,
    vhostVsock: false,
    vhostNet: false,
    hugePages: { mebibytes: 0, problem: "none" },
  };
  for (const hypervisor of ["cloud-hypervisor", "dragonball", "firecracker"])
    expect(noVm(profile({ hypervisor }), "/opt/kata", without)).toBeUndefined();
  expect(noVm(profile({}), "/opt/kata", { ...able, vhostNet: false })).toBeUndefined();
});

test("the files of an artifact are not asked for: they come with it", () => {
  const image = `registry.example/kata@sha256:${"a".repeat(64)}`;
  expect(
    noVm(profile({}, image), "/opt/bulkhead/artifacts/a/root", { ...able, has: () => false }),
  ).toBeUndefined();
});

test("all reasons are told at once", () => {
  const nothing = { ...able, kvm: { runs: false, why: "no" }, vhostVsock: false };
  expect(noVm(profile({}), "/opt/kata", nothing)).toMatch(/KVM.*; .*vhost-vsock/);
});
