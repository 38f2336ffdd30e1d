import { describe, expect, test } from "vitest";
import { type CdiFile, CdiSpec, cdiEdits, withEdits } from "./cdi.ts";
import type { Spec } from "./oci.ts";

const file = (path: string, priority: number, more: object = {}): CdiFile => ({
  path,
  priority,
  spec: CdiSpec.parse({
    cdiVersion: "0.6.0",
    kind: "vendor.com/gpu",
    devices: [
      { name: "0", containerEdits: { env: ["GPU=0"] } },
      { name: "1", containerEdits: { env: ["GPU=1"] } },
    ],
    containerEdits: { env: ["DRIVER=1"] },
    ...more,
  }),
});

const spec: Spec = {
  ociVersion: "1.2.0",
  root: { path: "/r" },
  process: {
    args: ["a"],
    cwd: "/",
    env: ["PATH=/bin", "DRIVER=0"],
    user: { uid: 1, gid: 1, additionalGids: [1] },
  },
  mounts: [{ destination: "/proc", type: "proc" }],
  linux: { namespaces: [], resources: { devices: [{ allow: false, access: "rwm" }] } },
};

describe("cdiEdits()", () => {
  test("takes a file's own edits once, then each device's", () => {
    const edits = cdiEdits(["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/gpu=0"], [file("/a", 0)], []);
    expect(edits.map((each) => each.env)).toEqual([["DRIVER=1"], ["GPU=0"], ["GPU=1"]]);
  });

  test("a directory of higher priority hides a lower one's device", () => {
    const over = file("/run", 1, { devices: [{ name: "0", containerEdits: { env: ["GPU=run"] } }] });
    expect(cdiEdits(["vendor.com/gpu=0"], [file("/etc", 0), over], [])[1]?.env).toEqual(["GPU=run"]);
    expect(cdiEdits(["vendor.com/gpu=1"], [file("/etc", 0), over], [])[1]?.env).toEqual(["GPU=1"]);
  });

  test.each([
    ["an unknown device", ["vendor.com/gpu=9"], [file("/a", 0)], 'device "vendor.com/gpu=9": no CDI file'],
    [
      "an unknown kind",
      ["other.com/gpu=0"],
      [file("/a", 0)],
      "no CDI file of this node defines it; not usable: /b: x",
    ],
    ["a name that is none", ["gpu0"], [], "must be VENDOR/CLASS=NAME"],
    [
      "two files of one priority",
      ["vendor.com/gpu=0"],
      [file("/a", 1), file("/b", 1)],
      "/a and /b both define it",
    ],
  ] as const)("refuses %s by name", (_what, names, files, message) => {
    expect(() => cdiEdits(names, files, ["/b: x"])).toThrow(message);
  });
});

describe("CdiSpec", () => {
  test.each([
    ["a version that is not known", { cdiVersion: "2.0.0" }],
    ["a kind without a class", { kind: "vendor" }],
    ["no devices", { devices: [] }],
    [
      "a relative device node",
      { devices: [{ name: "0", containerEdits: { deviceNodes: [{ path: "dev/x" }] } }] },
    ],
    ["a variable without a name", { containerEdits: { env: ["=x"] } }],
    ["an unknown hook", { containerEdits: { hooks: [{ hookName: "never", path: "/x" }] } }],
  ])("refuses %s", (_what, change) => {
    expect(() => file("/a", 0, change)).toThrow();
  });
});

describe("withEdits()", () => {
  const edited = withEdits(
    spec,
    [
      {
        env: ["DRIVER=1"],
        additionalGids: [0, 44],
        mounts: [{ hostPath: "/usr/lib/gpu.so", containerPath: "/usr/lib/gpu.so", options: ["ro"] }],
        hooks: [{ hookName: "createContainer", path: "/usr/bin/hook", args: ["hook"] }],
        devices: [
          {
            path: "/dev/gpu",
            type: "c",
            major: 195,
            minor: 0,
            mode: 0o666,
            uid: 0,
            gid: 0,
            permissions: "rw",
          },
        ],
      },
    ],
    false,
  );

  test("replaces variables of the same name and adds groups but for root's", () => {
    expect(edited.process?.env).toEqual(["PATH=/bin", "DRIVER=1"]);
    expect(edited.process?.user.additionalGids).toEqual([1, 44]);
  });

  test("adds mounts, hooks, and devices with the right to use them", () => {
    expect(edited.mounts.at(-1)).toEqual({
      destination: "/usr/lib/gpu.so",
      source: "/usr/lib/gpu.so",
      type: "bind",
      options: ["rbind", "ro"],
    });
    expect(edited.hooks).toEqual({ createContainer: [{ path: "/usr/bin/hook", args: ["hook"] }] });
    expect(edited.linux?.devices).toMatchObject([{ path: "/dev/gpu", major: 195, fileMode: 0o666 }]);
    expect(edited.linux?.resources?.devices?.at(-1)).toEqual({
      ...{ allow: true, type: "c", major: 195, minor: 0, access: "rw" },
    });
  });
});
