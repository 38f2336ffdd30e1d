import { describe, expect, test } from "vitest";
import { type Gvisor, runscFlags, runscSettings, tenantAnnotations } from "./gvisor.ts";
import { choosePlatform } from "./platform.ts";

const plain: Gvisor = { platform: "auto", network: "sandbox", overlay: "memory" };
const flags = (gvisor: Partial<Gvisor>) => runscFlags({ ...plain, ...gvisor }, "systrap");

describe("a profile of gVisor in runsc's words", () => {
  test("as it comes: a network of its own, writes in memory, and what the pod says of seccomp and setuid", () => {
    expect(flags({})).toEqual({
      platform: "systrap",
      network: "sandbox",
      overlay2: "root:memory",
      "oci-seccomp": "true",
      "allow-suid": "true",
    });
  });

  test.each<[Partial<Gvisor>, string]>([
    [{ overlay: "none" }, "none"],
    [{ overlay: "self" }, "root:self"],
    [{ overlay: "directory" }, "root:dir=/var/lib/bulkhead/gvisor"],
    [{ overlay: "memory", overlayScope: "all" }, "all:memory"],
    [{ overlay: "self", overlaySize: "512Mi" }, "root:self,size=536870912"],
    [{ overlay: "memory", overlaySize: "1.5G" }, "root:memory,size=1500000000"],
    [{ overlay: "memory", overlaySize: "64k" }, "root:memory,size=64000"],
  ])("%j is overlay2=%s", (gvisor, overlay2) => {
    expect(flags(gvisor).overlay2).toBe(overlay2);
  });

  test("the directory of overlays is the runtime's to make", () => {
    expect(runscSettings({ ...plain, overlay: "directory" })).toEqual({
      network: "sandbox",
      emptyDir: "node",
      nvproxy: false,
      overlayDirectory: "/var/lib/bulkhead/gvisor",
    });
  });

  test("a flag can unsay what the pod says of setuid, but no field of the profile", () => {
    const said = [
      "--allow-suid=false",
      "--network=host",
      "--platform=ptrace",
      "--overlay2=none",
      "--net-raw",
    ];
    expect(flags({ flags: said })).toMatchObject({
      "allow-suid": "false",
      "net-raw": "true",
      network: "sandbox",
      platform: "systrap",
      overlay2: "root:memory",
    });
  });

  test("GPUs go through nvproxy, with the driver's version and what a container may ask for", () => {
    expect(flags({ nvproxy: {} })).toMatchObject({ nvproxy: "true" });
    expect(
      flags({ nvproxy: { driverVersion: "580.126.20", capabilities: ["compute", "utility", "video"] } }),
    ).toMatchObject({
      "nvproxy-driver-version": "580.126.20",
      "nvproxy-allowed-driver-capabilities": "compute,utility,video",
    });
  });
});

describe("what a pod may say", () => {
  test("is nothing, unless its profile names it", () => {
    expect(tenantAnnotations(plain)).toEqual([]);
    expect(tenantAnnotations({ ...plain, tenant: { flags: ["debug", "strace"] } })).toEqual([
      "dev.gvisor.flag.debug",
      "dev.gvisor.flag.strace",
    ]);
    expect(tenantAnnotations({ ...plain, tenant: { volumeHints: true } })).toContain(
      "dev.gvisor.spec.mount.*",
    );
  });
});

describe("the platform", () => {
  const trials = (kvm: boolean) => [
    { name: "systrap" as const, works: true },
    { name: "kvm" as const, works: kvm, ...(kvm ? {} : { message: "a process on it did not end in 3 s" }) },
    { name: "ptrace" as const, works: true },
  ];
  test("is kvm where it runs, else systrap, never ptrace unless asked for", () => {
    expect(choosePlatform("auto", trials(true))).toEqual({ platform: "kvm" });
    expect(choosePlatform("auto", trials(false))).toEqual({ platform: "systrap" });
    expect(choosePlatform("ptrace", trials(true))).toEqual({ platform: "ptrace" });
  });
  test("that was asked for and does not run is told with what happened", () => {
    expect(choosePlatform("kvm", trials(false)).trouble).toBe(
      'Cannot run gVisor\'s platform "kvm" on this node: a process on it did not end in 3 s',
    );
  });
});
