import { expect, test } from "vitest";
import type { Process } from "../processes.ts";
import { findCanary, type Outside, outsideChecks } from "./outside.ts";

const process = (pid: number, parent: number, ...argv: string[]): Process => ({ pid, parent, argv });
const init = process(1, 0, "/sbin/init");

test("under runc the canary is a process of the node, and its monitor what it costs", () => {
  const found = findCanary(
    [
      init,
      process(10, 1, "/bin/conmon", "-c", "c1"),
      process(11, 10, "sleep", "3600.5"),
      process(12, 1, "sh"),
    ],
    ["p1", "c1"],
    "3600.5",
  );
  expect(found.visible).toBe(1);
  expect(found.sandbox).toBeUndefined();
  expect(found.overhead.map(({ pid }) => pid)).toEqual([10]);
});

test("under gVisor the node sees the sandbox and what belongs to it, and of the canary nothing", () => {
  const found = findCanary(
    [
      init,
      process(10, 1, "/x/containerd-shim-runsc-v1", "-id", "p1"),
      process(11, 10, "runsc-gofer", "--root=/r", "gofer", "--bundle=/run/p1"),
      process(12, 10, "runsc-sandbox", "--platform=kvm", "--network=host", "boot", "p1"),
      process(13, 12, "exe"),
      process(20, 1, "runsc-sandbox", "boot", "p2"),
    ],
    ["p1", "c1"],
    "3600.5",
  );
  expect(found).toMatchObject({ visible: 0, sandbox: { network: "host", platform: "kvm" } });
  expect(found.overhead.map(({ pid }) => pid)).toEqual([10, 11, 12, 13]);
});

const outside: Outside = {
  visible: 0,
  sandbox: { network: "sandbox", platform: "systrap" },
  overheadBytes: 1,
};
const broken = (seen: Outside, promise = { network: "sandbox", platform: "systrap" }) =>
  outsideChecks(seen, promise).flatMap(([name, holds]) => (holds ? [] : [name]));

test.each<[string, Outside, string[]]>([
  ["nothing when it is as promised", outside, []],
  [
    "the network that was opened",
    { ...outside, sandbox: { network: "host", platform: "systrap" } },
    ["network-as-profiled"],
  ],
  [
    "the platform that is another",
    { ...outside, sandbox: { network: "sandbox", platform: "ptrace" } },
    ["platform-as-profiled"],
  ],
  [
    "everything when it is no gVisor at all",
    { visible: 1, overheadBytes: 1 },
    ["hidden-from-host", "runs-in-runsc", "network-as-profiled", "platform-as-profiled"],
  ],
])("broken is %s", (_what, seen, names) => {
  expect(broken(seen)).toEqual(names);
});
