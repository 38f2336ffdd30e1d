import { create } from "@bufbuild/protobuf";
import { PodSandboxConfigSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { describe, expect, test } from "vitest";
import { passedAnnotations, requireAllowed, sandboxAnnotations } from "./annotations.ts";

const gvisor = { name: "sandboxed", allowedAnnotations: ["dev.gvisor.flag.debug"], runsc: {} };

test("a pod passes what its handler lets through, and never what names files of the node or says who is who", () => {
  const pod = {
    "a.example/x": "1",
    "b.example/x": "2",
    "org.criu.config": "/etc/x",
    "io.kubernetes.cri.sandbox-id": "x",
  };
  expect(passedAnnotations(["a.*"], pod)).toEqual({ "a.example/x": "1" });
  expect(passedAnnotations(["*"], pod)).toEqual({ "a.example/x": "1", "b.example/x": "2" });
});

describe("under gVisor an annotation that would change the sandbox", () => {
  test("is taken when the profile allows it", () => {
    expect(() => requireAllowed(gvisor, { "dev.gvisor.flag.debug": "true", other: "x" })).not.toThrow();
  });

  test.each([
    "dev.gvisor.flag.network",
    "dev.gvisor.flag.debug-command",
    "dev.gvisor.flag.overlay2",
    "dev.gvisor.spec.mount.v.source",
    "dev.gvisor.spec.cgroup-parent",
    "dev.gvisor.spec.rootfs.source",
    "dev.gvisor.tar.rootfs.upper",
  ])("is refused by name when it does not: %s", (key) => {
    expect(() => requireAllowed(gvisor, { [key]: "x" })).toThrow(
      `Cannot run the pod with annotation "${key}": the profile of handler "sandboxed" does not let a pod set it`,
    );
  });

  test("says nothing to another kind of handler", () => {
    const runc = { name: "runc", allowedAnnotations: [] };
    expect(() => requireAllowed(runc, { "dev.gvisor.flag.network": "host" })).not.toThrow();
  });
});

describe("a pod's machine", () => {
  const sized = (resources: object, machine: Parameters<typeof sandboxAnnotations>[2]) => {
    const annotations = sandboxAnnotations(
      "id",
      create(PodSandboxConfigSchema, { linux: { resources } }),
      machine,
    );
    return ["memory", "cpu-period", "cpu-quota"].map(
      (name) => annotations[`io.kubernetes.cri.sandbox-${name}`],
    );
  };
  const cpu = { cpuPeriod: 50_000n, cpuQuota: 25_000n };
  const memory = { memoryLimitInBytes: BigInt(257 << 20) };
  const withoutLimit = { vcpus: 1.8, memoryMiB: 480 };
  const hugepages = { pageMiB: 2, machineMiB: 512 };

  test.each<[string, object, Parameters<typeof sandboxAnnotations>[2], string[]]>([
    ["is its limits", { ...memory, ...cpu }, { withoutLimit }, ["269484032", "50000", "25000"]],
    ["is in whole huge pages", memory, { hugepages }, ["270532608", "0", "0"]],
    ["has the profile's memory beside a CPU limit", cpu, { withoutLimit }, ["503316480", "50000", "25000"]],
    [
      "has the profile's vCPUs beside a memory limit",
      memory,
      { withoutLimit },
      ["269484032", "100000", "180000"],
    ],
    ["is the profile's without limits", {}, { withoutLimit, hugepages }, ["0", "0", "0"]],
    ["is left to a runtime that adds", cpu, {}, ["0", "50000", "25000"]],
  ])("%s", (_title, resources, machine, expected) => {
    expect(sized(resources, machine)).toEqual(expected);
  });
});
