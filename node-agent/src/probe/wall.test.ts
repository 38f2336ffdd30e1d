import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { judge, parseView, type View, viewCommand } from "./wall.ts";

const host: View = {
  version: "Linux version 6.18.0 (host)",
  release: "6.18.0",
  bootId: "b",
  cmdline: "root=/dev/vda",
  kernelLog: "[    0.000000] Linux version 6.18.0",
  devices: ["null", "vda", "kmsg"],
  processes: 200,
  namespaces: { pid: "pid:[1]", mnt: "mnt:[1]", net: "net:[1]", ipc: "ipc:[1]", uts: "uts:[1]" },
};
const walled: View = {
  ...host,
  devices: ["null", "zero", "full", "random", "urandom", "tty"],
  processes: 3,
  namespaces: { pid: "pid:[2]", mnt: "mnt:[2]", net: "net:[2]", ipc: "ipc:[2]", uts: "uts:[2]" },
};

describe("namespaces", () => {
  test("hold when each of the five is another than the host's, with devices and processes of its own", () => {
    expect(judge("namespaces", walled, host)).toEqual({
      assertions: [
        "own-pid-namespace",
        "own-mnt-namespace",
        "own-net-namespace",
        "own-ipc-namespace",
        "own-uts-namespace",
        "own-devices",
        "own-processes",
      ],
      broken: [],
    });
  });

  test.each<[string, Partial<View>, string[]]>([
    [
      "a namespace is the host's own",
      { namespaces: { ...walled.namespaces, net: "net:[1]" } },
      ["own-net-namespace"],
    ],
    ["a disk of the host is there", { devices: ["null", "vda"] }, ["own-devices"]],
    ["the host's processes are there", { processes: 200 }, ["own-processes"]],
    ["no process can be seen", { processes: 0 }, ["own-processes"]],
  ])("are broken where %s", (_what, change, broken) => {
    expect(judge("namespaces", { ...walled, ...change }, host).broken).toEqual(broken);
  });

  test("are broken where one cannot be seen", () => {
    expect(judge("namespaces", { ...walled, namespaces: {} }, host).broken).toHaveLength(5);
  });
});

describe("another kernel", () => {
  const mark = { engine: "gvisor" as const, network: "sandbox" };
  const outside = { visible: 0, sandbox: { network: "sandbox", platform: "systrap" }, overheadBytes: 1 };
  const gvisor: View = {
    ...walled,
    version: "Linux version 4.19.0-gvisor",
    release: "4.19.0-gvisor",
    bootId: "c",
    cmdline: "BOOT_IMAGE=/vmlinuz-4.19.0-gvisor quiet",
    kernelLog: "[    0.000000] Starting gVisor...",
  };

  test("holds when it is gVisor's from inside, and from the node no more than a sandbox", () => {
    expect(judge("kernel", gvisor, host, mark, outside)).toEqual({
      assertions: [
        "kernel-differs",
        "boot-differs",
        "boot-line-differs",
        "kernel-is-gvisor",
        "kernel-log-is-gvisors",
        "own-devices",
        "own-processes",
        "hidden-from-host",
        "runs-in-runsc",
        "network-as-profiled",
      ],
      broken: [],
    });
  });

  test("is broken when the pod runs on the host's kernel after all", () => {
    expect(judge("kernel", walled, host, mark, { visible: 1, overheadBytes: 1 }).broken).toEqual([
      "kernel-differs",
      "boot-differs",
      "boot-line-differs",
      "kernel-is-gvisor",
      "kernel-log-is-gvisors",
      "hidden-from-host",
      "runs-in-runsc",
      "network-as-profiled",
    ]);
  });

  test("is broken when its network is the node's and the profile does not say so", () => {
    const open = { ...outside, sandbox: { network: "host", platform: "systrap" } };
    expect(judge("kernel", gvisor, host, mark, open).broken).toEqual(["network-as-profiled"]);
    expect(judge("kernel", gvisor, host, { ...mark, network: "host" }, open).broken).toEqual([]);
  });

  test("of another make than gVisor shows itself by kernel and boot, and hides its processes", () => {
    const guest = { ...gvisor, version: "Linux version 6.12.0 (guest)", kernelLog: "" };
    expect(judge("vm", guest, host, undefined, { visible: 0, overheadBytes: 1 }).broken).toEqual([]);
    expect(judge("vm", guest, host, undefined, { visible: 1, overheadBytes: 1 }).broken).toEqual([
      "hidden-from-host",
    ]);
  });
});

describe("a virtual machine", () => {
  const parameter = "bulkhead.revision=0123456789";
  const guest: View = {
    ...walled,
    version: "Linux version 6.18.40 (kata)",
    release: "6.18.40",
    bootId: "c",
    cmdline: `reboot=k cgroup_no_v1=all ${parameter} quiet`,
  };

  test("holds with a kernel and a boot of its own, booted by this revision's configuration", () => {
    expect(judge("vm", guest, host, { parameter })).toEqual({
      assertions: [
        ...["kernel-differs", "boot-differs", "boot-line-differs", "guest-is-of-this-revision"],
        ...["own-devices", "own-processes"],
      ],
      broken: [],
    });
  });

  test("may have booted the very kernel of its node, where the configuration shows itself in the guest", () => {
    const same = { ...guest, version: host.version };
    expect(judge("vm", same, host, { parameter }).broken).toEqual([]);
    expect(judge("vm", same, host, { parameter }).assertions).not.toContain("kernel-differs");
    expect(judge("vm", same, host).broken).toEqual(["kernel-differs"]);
    expect(judge("vm", { ...same, bootId: host.bootId }, host, { parameter }).broken).toEqual([
      "boot-differs",
    ]);
  });

  test.each<[string, Partial<View>, string]>([
    ["no kernel can be seen", { version: "" }, "kernel-differs"],
    ["the boot is the host's", { bootId: host.bootId }, "boot-differs"],
    ["the boot cannot be seen", { bootId: "" }, "boot-differs"],
    ["the guest was booted by another configuration", { cmdline: "quiet" }, "guest-is-of-this-revision"],
    [
      "the revision is only the beginning of the guest's",
      { cmdline: `${parameter}ab` },
      "guest-is-of-this-revision",
    ],
  ])("is broken when %s", (_why, change, broken) => {
    expect(judge("vm", { ...guest, ...change }, host, { parameter }).broken).toEqual([broken]);
  });
});

test("the command prints what the parser reads, here on this machine", () => {
  const [shell = "", ...args] = viewCommand;
  const view = parseView(execFileSync(shell, args, { encoding: "utf8" }));
  expect(view.version).toMatch(/^Linux version /);
  expect(view.namespaces.pid).toMatch(/^pid:\[[0-9]+\]$/);
  expect(view.devices).toContain("null");
  expect(view.processes).toBeGreaterThan(1);
  expect(view.cmdline).not.toBe("");
  expect(judge("namespaces", view, view).broken).toContain("own-pid-namespace");
});
