import { describe, expect, test } from "vitest";
import { parseProcessStat } from "../../linux/process.ts";
import { monitorArguments, parseReport } from "../../monitor/conmon.ts";
import { failureOf } from "./command.ts";
import { parseFeatures, specVersion } from "./features.ts";
import { holderSpec } from "./holder.ts";

describe("the runtime's failure", () => {
  test("is the last error of its log, without JSON", () => {
    const log = [
      `{"level":"warning","msg":"cgroup is odd","time":"x"}`,
      `{"level":"error","msg":"runc create failed: exec: \\"x\\": not found","time":"x"}`,
    ];
    expect(failureOf(log.join("\n"))).toBe('runc create failed: exec: "x": not found');
  });

  test("is the message of a logged line, and warnings are none", () => {
    expect(failureOf('time="t" level=warning msg="hm"\ntime="t" level=error msg="no \\"x\\""\n')).toBe(
      'no "x"',
    );
    expect(failureOf('time="t" level=warning msg="hm"\n')).toBe("");
    expect(failureOf("container does not exist\n")).toBe("container does not exist");
    const youki = [
      `{"timestamp":"t","level":"WARN","message":"no hugetlb","target":"libcgroups"}`,
      `{"timestamp":"t","level":"ERROR","message":"exec failed\\n\\nStack backtrace:\\n 0: x","target":"youki"}`,
    ];
    expect(failureOf(youki.join("\n"))).toBe("exec failed");
    expect(failureOf(youki[0] ?? "")).toBe("");
  });
});

describe("conmon", () => {
  const plan = {
    ...{
      id: "c",
      directory: "/s/c",
      exitDirectory: "/e",
      runtime: "/runc",
      runtimeOptions: ["--root", "/r"],
    },
    ...{ systemdCgroup: false, tty: false, stdin: false, stdinOnce: false, logPath: "" },
  };

  test("keeps stdin open after a client left unless it is for once", () => {
    expect(monitorArguments(plan)).not.toContain("--stdin");
    expect(monitorArguments({ ...plan, stdin: true })).toEqual(
      expect.arrayContaining(["--stdin", "--leave-stdin-open"]),
    );
    expect(monitorArguments({ ...plan, stdin: true, stdinOnce: true })).not.toContain("--leave-stdin-open");
  });

  test("discards the log without a path", () => {
    expect(monitorArguments(plan).join(" ")).toContain("--log-path none");
    expect(monitorArguments({ ...plan, logPath: "/l" }).join(" ")).toContain("--log-path k8s-file:/l");
  });

  test("reports a process, or why there is none", () => {
    expect(parseReport('{"pid": 12}\n')).toEqual({ pid: 12 });
    expect(parseReport('{"pid": -1, "message": "no\\n"}\n')).toEqual({ failure: "no" });
    expect(parseReport("")).toEqual({ failure: "" });
    expect(parseReport('{"pid": -1, "mess')).toEqual({ failure: '{"pid": -1, "mess' });
  });
});

test("a process may have spaces and parentheses in its name", () => {
  const rest = "S 7 9 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8765 1 1";
  expect(parseProcessStat(`42 (a) b (c) ${rest}`)).toEqual({
    state: "S",
    parent: 7,
    session: 9,
    startTime: 8765n,
  });
});

test("features are those that the runtime names, on a kernel that has them", () => {
  const output = JSON.stringify({
    mountOptions: ["ro", "rro"],
    linux: { namespaces: ["user"], mountExtensions: { idmap: { enabled: true } } },
  });
  const all = { recursiveReadOnlyMounts: true, userNamespaces: true, userNamespacesHostNetwork: false };
  const none = { recursiveReadOnlyMounts: false, userNamespaces: false, userNamespacesHostNetwork: false };
  expect(parseFeatures(output, "6.1.0")).toEqual(all);
  expect(parseFeatures(output, "5.11.3")).toEqual(none);
  expect(parseFeatures("No help topic for 'features'", "6.1.0")).toEqual(none);
});

test("a holder has the pod's namespaces and cgroup, and nothing of its mounts, capabilities or devices", () => {
  const pod = {
    ociVersion: "1.2.0",
    root: { path: "" },
    process: { user: { uid: 7, gid: 7 }, args: ["x"], env: ["A=1"], cwd: "/w", oomScoreAdj: -998 },
    mounts: [{ destination: "/host", source: "/", options: ["bind"] }],
    linux: { namespaces: [{ type: "pid" as const }], cgroupsPath: "/pod/x" },
  };
  const spec = holderSpec(pod, "/s/rootfs", "/opt/pause");
  expect(spec.linux).toMatchObject({ namespaces: [{ type: "pid" }], cgroupsPath: "/pod/x" });
  expect(spec.mounts.map((mount) => mount.destination)).toEqual(["/proc", "/dev", "/pause"]);
  expect(spec.process).toMatchObject({
    args: ["/pause"],
    env: ["PATH=/"],
    oomScoreAdj: -998,
    noNewPrivileges: true,
  });
  expect(spec.process?.capabilities).toEqual({ bounding: [], effective: [], permitted: [] });
});

test.each([
  ['{"ociVersionMin":"1.0.0","ociVersionMax":"1.3.0"}', "1.2.0"],
  ['{"ociVersionMin":"1.0.0","ociVersionMax":"1.1.0+dev"}', "1.1.0+dev"],
  ["unknown command features", "1.0.2"],
])("to a runtime that says %s a specification is one of %s", (output, version) => {
  expect(specVersion(output)).toBe(version);
});
