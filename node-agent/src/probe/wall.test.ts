import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { judge, parseView, type View, viewCommand } from "./wall.ts";

const host: View = {
  version: "Linux version 6.18.0 (host)",
  release: "6.18.0",
  bootId: "b",
  cmdline: "root=/dev/vda",
  namespaces: { pid: "pid:[1]", mnt: "mnt:[1]", net: "net:[1]", ipc: "ipc:[1]", uts: "uts:[1]" },
};
const walled: View = {
  ...host,
  namespaces: { pid: "pid:[2]", mnt: "mnt:[2]", net: "net:[2]", ipc: "ipc:[2]", uts: "uts:[2]" },
};

describe("namespaces", () => {
  test("hold when each of the five is another than the host's", () => {
    expect(judge("namespaces", walled, host)).toEqual({
      assertions: [
        "own-pid-namespace",
        "own-mnt-namespace",
        "own-net-namespace",
        "own-ipc-namespace",
        "own-uts-namespace",
      ],
      broken: [],
    });
  });

  test("are broken where one is the host's own", () => {
    const inside = { ...walled, namespaces: { ...walled.namespaces, net: "net:[1]" } };
    expect(judge("namespaces", inside, host).broken).toEqual(["own-net-namespace"]);
  });

  test("are broken where one cannot be seen", () => {
    expect(judge("namespaces", { ...walled, namespaces: {} }, host).assertions).toEqual([]);
  });
});

describe("another kernel", () => {
  const gvisor: View = {
    ...host,
    version: "Linux version 4.19.0-gvisor",
    release: "4.19.0-gvisor",
    bootId: "",
  };

  test("holds when version and boot differ and it says that it is gVisor", () => {
    expect(judge("kernel", gvisor, host, { engine: "gvisor" })).toEqual({
      assertions: ["kernel-differs", "boot-differs", "kernel-is-gvisor"],
      broken: [],
    });
  });

  test("is broken when the pod runs on the host's kernel after all", () => {
    expect(judge("kernel", walled, host, { engine: "gvisor" }).broken).toEqual([
      "kernel-differs",
      "boot-differs",
      "kernel-is-gvisor",
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
      assertions: ["kernel-differs", "boot-differs", "guest-is-of-this-revision"],
      broken: [],
    });
  });

  test.each<[string, Partial<View>, string]>([
    ["the pod runs on the host's kernel after all", { version: host.version }, "kernel-differs"],
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
  expect(judge("namespaces", view, view).assertions).toEqual([]);
});
