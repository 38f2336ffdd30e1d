import { kataHandler } from "@bulkhead/lib/api/kata.ts";
import { expect, test } from "vitest";
import { vmFiles } from "./profile.ts";

const handlerOf = (kata: object) =>
  vmFiles({ name: "vm", revision: "0123456789", handler: { kata: kataHandler.parse(kata) } }, "/opt/kata", {
    arch: "amd64",
    vhostNet: true,
  }).handler;

test.each<[object, boolean]>([
  [{ shim: "rust", hypervisor: "qemu" }, false],
  [{ shim: "rust", hypervisor: "firecracker" }, false],
  [{ shim: "rust", hypervisor: "dragonball" }, false],
  [{ shim: "rust", hypervisor: "cloud-hypervisor" }, true],
  [{ shim: "go", hypervisor: "qemu" }, true],
  [{ shim: "go", hypervisor: "firecracker" }, true],
])("a shim is asked for metrics only where the question does not end it: %o %s", (kata, metrics) => {
  expect(handlerOf(kata)).toMatchObject({ kata: { metrics } });
});

test("the runtime is told of huge pages, for it sizes machines of pods with limits", () => {
  expect(handlerOf({ shim: "go", hugepages: true })).toMatchObject({
    kata: { hugepages: { pageMiB: 2, machineMiB: 2048 } },
  });
  expect(handlerOf({ shim: "go" })).not.toHaveProperty("kata.hugepages");
});

test("a pod with one limit has the profile's machine in the other: runtime-rs is told so, the older runtime adds", () => {
  expect(handlerOf({ vcpus: 4 })).toMatchObject({
    kata: { withoutLimit: { vcpus: 3.8, memoryMiB: 2016 } },
  });
  expect(handlerOf({ hypervisor: "firecracker", memory: "512Mi" })).toMatchObject({
    kata: { withoutLimit: { vcpus: 1, memoryMiB: 512 } },
  });
  expect(handlerOf({ hypervisor: "dragonball", hugepages: true })).toMatchObject({
    kata: { withoutLimit: { memoryMiB: 0 } },
  });
  expect(handlerOf({ shim: "go" })).not.toHaveProperty("kata.withoutLimit");
});
