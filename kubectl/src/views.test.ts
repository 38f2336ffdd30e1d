import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import {
  type Condition,
  type RuntimeProfile,
  RuntimeProfileSpec,
} from "@bulkhead/lib/api/runtime-profile.ts";
import { advice } from "@bulkhead/lib/view/advice.ts";
import { age } from "@bulkhead/lib/view/age.ts";
import { statusView } from "@bulkhead/lib/view/profile.ts";
import { describe, expect, test } from "vitest";
import type { Pod, Seen } from "./cluster.ts";
import { diagnose } from "./doctor.ts";
import { explain } from "./explain.ts";
import { revisionNumber, seconds } from "./numbers.ts";
import { progressOf, waitForRollout } from "./rollout.ts";
import { statusTable } from "./status.ts";
import { painter, table } from "./table.ts";
import { tenantsView } from "./tenants.ts";

/** What the commands make of a cluster; kubectl.host.test.ts asks a real one. */

const now = Date.parse("2026-11-27T12:00:00Z");
const ago = (seconds: number): string => new Date(now - seconds * 1000).toISOString();
const plain = painter(false);

const condition = (type: string, status: "True" | "False", reason: string, message = ""): Condition => ({
  type,
  status,
  reason,
  message,
  lastTransitionTime: ago(60),
});

const profile = (name: string, more: Partial<RuntimeProfile> = {}): RuntimeProfile => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "RuntimeProfile",
  metadata: { name, generation: 1 },
  spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} } }),
  status: {
    observedGeneration: 1,
    conditions: [
      condition("Accepted", "True", "Accepted"),
      condition("RuntimeClassReady", "True", "RuntimeClassReady"),
      condition("Degraded", "False", "AsExpected"),
      condition("Progressing", "False", "RolledOut"),
      condition("Ready", "True", "AllNodesReady"),
    ],
    nodes: { desired: 1, updated: 1, ready: 1, failed: 0 },
    updateRevision: "0123456789",
  },
  ...more,
});

const nodeRuntime = (name: string, passed = true, heartbeat = ago(5)): NodeRuntime => ({
  apiVersion: "bulkhead.dev/v1alpha1",
  kind: "NodeRuntime",
  metadata: { name },
  spec: { profiles: [] },
  status: {
    heartbeat,
    agentVersion: "0.1.0",
    runtimeVersion: "0.1.0",
    engine: {
      name: "containerd",
      version: "2.4.2",
      socket: "/run/containerd/containerd.sock",
      fronted: true,
    },
    profiles: [
      {
        name: "sandboxed",
        phase: passed ? "Ready" : "Failed",
        revision: "0123456789",
        reason: passed ? "CanaryPassed" : "CanaryFailed",
        message: passed ? "" : "the kernel behind the wall is the host's",
        canary: {
          passed,
          at: ago(30),
          startSeconds: 0.6,
          kernel: "4.19.0-gvisor",
          assertions: ["kernel-differs"],
          failures: 0,
        },
      },
    ],
  },
});

const pod = (
  namespace: string,
  name: string,
  more: { class?: string; node?: string; phase?: string } = {},
): Pod => ({
  metadata: { namespace, name },
  spec: {
    ...(more.class ? { runtimeClassName: more.class } : {}),
    ...(more.node ? { nodeName: more.node } : {}),
  },
  status: { phase: more.phase ?? "Running", startTime: ago(100) },
});

const seen = (more: Partial<Seen> = {}): Seen => ({
  now,
  profiles: [profile("sandboxed")],
  nodeRuntimes: [nodeRuntime("n1")],
  nodes: [{ metadata: { name: "n1" } }],
  runtimeClasses: [],
  pods: [],
  ...more,
});
const healthyLease = {
  metadata: { name: "bulkhead-operator" },
  spec: { holderIdentity: "a", renewTime: ago(2) },
};

test("A time is seconds or what kubectl takes, and never no number", () => {
  expect(["0", "90", "1.5", "90s", "5m", "1h30m"].map(seconds)).toEqual([0, 90, 1.5, 90, 300, 5400]);
  for (const text of ["", "m", "5 m", "-1", "5d", "5mx", "NaN", "Infinity", "1e9"])
    expect(() => seconds(text), text).toThrow("Expected seconds");
  expect(revisionNumber("3")).toBe(3);
  for (const text of ["0", "-1", "two", "1.5", ""])
    expect(() => revisionNumber(text), text).toThrow("Expected a number");
});

describe("A table", () => {
  test("lines its columns up and ends no line in space", () => {
    expect(
      table(
        ["A", "LONG"],
        [
          ["value", { text: "x", tone: "good" }],
          ["v", ""],
        ],
        plain,
      ),
    ).toBe("A       LONG\nvalue   x\nv\n");
  });
  test("keeps escapes of a tenant's text from the terminal, and colours only when asked", () => {
    const row = [{ text: "evil\u001b]0;title\u0007", tone: "bad" as const }];
    expect(table(["A"], [row], plain)).toBe("A\nevil ]0;title\n");
    expect(table(["A"], [["x"]], painter(true))).toBe("A\nx\n");
    expect(painter(true)("x", "bad")).toBe("\u001b[31mx\u001b[0m");
  });
  test.each([
    [45_000, "45s"],
    [119_000, "119s"],
    [120_000, "2m"],
    [3 * 3600_000, "3h"],
    [4 * 86_400_000, "4d"],
  ])("tells %i ms as %s", (ms, told) => expect(age(ms)).toBe(told));
});

describe("status", () => {
  test("names what matters most first: an invalid spec before a failed node before all is well", () => {
    const broken = profile("b", {
      status: {
        conditions: [
          condition("Accepted", "False", "InvalidSpec", "no handler"),
          condition("Degraded", "True", "NodesFailed"),
          condition("Ready", "False", "NodesFailed"),
        ],
      },
    });
    const views = statusView({ profiles: [broken, profile("a")], now });
    expect(views.map(({ name, state, healthy }) => [name, state, healthy])).toEqual([
      ["a", "AllNodesReady", true],
      ["b", "InvalidSpec", false],
    ]);
    expect(statusTable(views, false, plain)).toContain("application kernel (gVisor)");
  });
});

describe("tenants", () => {
  test("what an agent said before it fell silent proves nothing now", () => {
    const pods = [pod("a", "x", { class: "sandboxed", node: "n1" })];
    const unproven = (heartbeat: string) =>
      tenantsView({ ...seen(), pods, nodeRuntimes: [nodeRuntime("n1", true, heartbeat)] }, 180_000)[0]
        ?.unproven;
    expect([unproven(ago(5)), unproven(ago(600))]).toEqual([0, 1]);
  });
  test("counts living pods by namespace and wall, and those whose wall is not proven where they run", () => {
    const views = tenantsView(
      seen({
        nodeRuntimes: [nodeRuntime("n1"), nodeRuntime("n2", false)],
        pods: [
          pod("a", "1", { class: "sandboxed", node: "n1" }),
          pod("a", "2", { class: "sandboxed", node: "n2" }),
          pod("a", "3", { class: "sandboxed", node: "n1", phase: "Succeeded" }),
          pod("a", "4", { node: "n1" }),
          pod("b", "1", { class: "foreign", node: "n1" }),
        ],
      }),
    );
    expect(
      views.map(({ namespace, profile, pods, unproven }) => [namespace, profile, pods, unproven]),
    ).toEqual([
      ["a", "", 1, 0],
      ["a", "sandboxed", 2, 1],
      ["b", "", 1, 0],
    ]);
  });
});

describe("explain", () => {
  const info = {
    kubeletVersion: "v1.36.3",
    kernelVersion: "6.1.0",
    containerRuntimeVersion: "bulkhead://0.1.0",
  };
  const running: Pod = {
    metadata: { namespace: "a", name: "web" },
    spec: { runtimeClassName: "sandboxed", nodeName: "n1" },
    status: {
      phase: "Running",
      startTime: ago(10),
      conditions: [{ type: "PodReadyToStartContainers", status: "True", lastTransitionTime: ago(9) }],
      containerStatuses: [
        { name: "web", containerID: "bulkhead://abc", state: { running: { startedAt: ago(8) } } },
      ],
    },
  };
  test("goes from the kubelet through our runtime and the shim to the container, with times", () => {
    const is = explain({
      pod: running,
      profile: profile("sandboxed"),
      nodeRuntime: nodeRuntime("n1"),
      node: { metadata: { name: "n1" }, status: { nodeInfo: info } },
      runtimeClass: { metadata: { name: "sandboxed" }, handler: "sandboxed" },
    });
    expect(is.hops.map(({ what, afterSeconds }) => [what, afterSeconds])).toEqual([
      ["kubelet", 0],
      ["bulkhead runtime", 1],
      ["containerd-shim-runsc-v1", undefined],
      ["runsc (sentry)", undefined],
      ["container web", 2],
    ]);
    expect(is.kernel).toEqual({ node: "6.1.0", behind: "4.19.0-gvisor" });
    expect(is.warnings).toEqual([]);
  });
  test("a pod without a class goes through the engine that Bulkhead fronts, and is told so", () => {
    const { runtimeClassName: _, ...spec } = running.spec ?? {};
    const is = explain({ pod: { ...running, spec }, nodeRuntime: nodeRuntime("n1") });
    expect(is.hops.map(({ what }) => what)).toEqual([
      "kubelet",
      "bulkhead runtime",
      "containerd",
      "container web",
    ]);
    expect(is.wall).toBe("the node's default");
    expect(is.warnings.join()).toContain("names no RuntimeClass");
  });
  test("a canary that failed where the pod runs is a warning", () => {
    const is = explain({
      pod: running,
      profile: profile("sandboxed"),
      nodeRuntime: nodeRuntime("n1", false),
    });
    expect(is.warnings.join()).toContain("The last canary on n1 failed");
  });
});

describe("doctor", () => {
  const reasons = (more: Partial<Seen>, lease: object | undefined = healthyLease, node?: string) =>
    diagnose(
      {
        ...seen(more),
        namespace: "bulkhead-system",
        ...(lease ? { lease } : {}),
        staleAfterMs: 180_000,
      } as never,
      node,
    ).map(({ where, reason }) => `${where} ${reason}`);
  test("finds nothing on a healthy cluster", () => expect(reasons({})).toEqual([]));
  test.each<[string, Partial<Seen>, string]>([
    [
      "an agent that fell silent",
      { nodeRuntimes: [nodeRuntime("n1", true, ago(600))] },
      "Node/n1 AgentSilent",
    ],
    [
      "a profile whose class is another's",
      {
        profiles: [
          profile("p", {
            status: {
              conditions: [
                condition("RuntimeClassReady", "False", "ForeignRuntimeClass"),
                condition("Degraded", "True", "ForeignRuntimeClass"),
              ],
            },
          }),
        ],
      },
      "RuntimeProfile/p ForeignRuntimeClass",
    ],
    [
      "a failed node",
      {
        profiles: [
          profile("p", {
            status: { failedNodes: [{ name: "n1", reason: "CanaryFailed", message: "same kernel" }] },
          }),
        ],
      },
      "Node/n1 CanaryFailed",
    ],
    [
      "a pod whose wall is not proven",
      { nodeRuntimes: [nodeRuntime("n1", false)], pods: [pod("a", "x", { class: "sandboxed", node: "n1" })] },
      "Pod/a/x UnprovenWall",
    ],
    [
      "a RuntimeClass that its profile left behind",
      {
        runtimeClasses: [
          { metadata: { name: "old", labels: { "bulkhead.dev/profile": "gone" } }, handler: "gone" },
        ],
      },
      "RuntimeClass/old OrphanRuntimeClass",
    ],
  ])("finds %s", (_title, more, found) => expect(reasons(more)).toContain(found));
  test("finds nothing wrong with a profile that only records, which is how tenancy begins", () => {
    const audited = profile("sandboxed");
    audited.status?.conditions?.push(condition("TenancyEnforced", "False", "Audit"));
    expect(reasons({ profiles: [audited] })).toEqual([]);
  });
  test("finds that no operator works", () => {
    const found = diagnose({ ...seen(), namespace: "walls", staleAfterMs: 1 });
    expect(found.map(({ reason }) => reason)).toContain("NoOperator");
    // Its commands are of the namespace that Bulkhead is in.
    expect(found.map(({ mend }) => mend).join()).toMatch(/kubectl -n walls describe/);
    expect(reasons({}, { ...healthyLease, spec: { ...healthyLease.spec, renewTime: ago(300) } })).toEqual([
      "Lease/bulkhead-operator NoOperator",
    ]);
  });
  test("narrowed to a node, tells of no other", () => {
    const nodeRuntimes = [nodeRuntime("n1", true, ago(600)), nodeRuntime("n2", true, ago(600))];
    const nodes = [{ metadata: { name: "n1" } }, { metadata: { name: "n2" } }];
    expect(reasons({ nodeRuntimes, nodes }, healthyLease, "n2")).toEqual(["Node/n2 AgentSilent"]);
  });
  test("narrowed to a node, tells of its pods, behind however many others they come", () => {
    const nodeRuntimes = [nodeRuntime("n1", false), nodeRuntime("n2", false)];
    const elsewhere = Array.from({ length: 20 }, (_, at) =>
      pod("a", `p${at}`, { class: "sandboxed", node: "n1" }),
    );
    const pods = [...elsewhere, pod("b", "here", { class: "sandboxed", node: "n2" })];
    const nodes = [{ metadata: { name: "n1" } }, { metadata: { name: "n2" } }];
    expect(reasons({ nodeRuntimes, nodes, pods }, healthyLease, "n2")).toContain("Pod/b/here UnprovenWall");
    expect(reasons({ nodeRuntimes, nodes, pods }).filter((each) => each.startsWith("Pod/"))).toHaveLength(10);
  });
  test("finds what a node says of a profile whose status has no room for it, once", () => {
    const failing = nodeRuntime("n1", false);
    failing.spec.profiles = [{ name: "sandboxed", revision: "0123456789" } as never];
    const told = { name: "n1", reason: "CanaryFailed", message: "the kernel behind the wall is the host's" };
    for (const failedNodes of [[], [told]])
      expect(
        reasons({ profiles: [profile("sandboxed", { status: { failedNodes } })], nodeRuntimes: [failing] }),
      ).toEqual(["Node/n1 CanaryFailed"]);
  });
  test("of a node that is not there is an error: nothing is wrong with it, for there is none", () => {
    expect(() => reasons({}, healthyLease, "n9")).toThrow('Cannot find node "n9"');
  });
  describe("and docs/runbook.md", async () => {
    const root = join(import.meta.dirname, "../..");
    const runbook = await readFile(join(root, "docs/runbook.md"), "utf8");
    // Alerts have headings, too: test/observability holds those.
    const headings = [...(runbook.split("## Alerts")[0] ?? "").matchAll(/^### (\w+)$/gm)].map(
      ([, reason]) => reason,
    );

    test("tell of the same reasons", () => {
      expect(Object.keys(advice).sort()).toEqual(headings.sort());
    });

    test("leave out no reason that the operator or the agent gives", async () => {
      const told = new Set(runbook.match(/\b[A-Z]\w+/g));
      const missing: string[] = [];
      for (const program of ["operator/src", "node-agent/src"])
        for (const file of await readdir(join(root, program), { recursive: true })) {
          if (!file.endsWith(".ts") || file.endsWith(".test.ts")) continue;
          const source = await readFile(join(root, program, file), "utf8");
          for (const [, reason = ""] of source.matchAll(/\breason: "([A-Z]\w+)"/g))
            if (!told.has(reason)) missing.push(`${reason} (${program}/${file})`);
        }
      expect(missing, "write a heading of docs/runbook.md and a line of lib/view/advice.ts").toEqual([]);
    });
  });
});

describe("rollout", () => {
  test("waits until the operator has seen the newest spec", () => {
    expect(progressOf(profile("p", { metadata: { name: "p", generation: 2 } }))).toMatchObject({
      done: false,
      failed: false,
    });
  });
  test("is done when every node is ready, and has failed when the profile is degraded", () => {
    expect(progressOf(profile("p")).done).toBe(true);
    const is = profile("p", {
      status: {
        observedGeneration: 1,
        nodes: { desired: 3, updated: 2, ready: 1, failed: 2 },
        conditions: [condition("Degraded", "True", "FailureThreshold", "2 nodes failed")],
      },
    });
    expect(progressOf(is)).toMatchObject({ failed: true, text: expect.stringContaining("2 nodes failed") });
  });
  test("is done where the profile selects no node", () => {
    const is = profile("p", {
      status: {
        observedGeneration: 1,
        nodes: { desired: 0, updated: 0, ready: 0, failed: 0 },
        conditions: [condition("Ready", "False", "NoNodes", "no node matches spec.nodeSelector")],
      },
    });
    expect(progressOf(is)).toEqual({
      done: true,
      failed: false,
      text: '"p" has no node to roll out to: no node matches spec.nodeSelector',
    });
  });
  test("is not done while the last nodes have not been ready for long enough", () => {
    const { status, ...rest } = profile("p");
    const rolling = condition("Progressing", "True", "RollingOut", "1 ready for less than 60 s");
    const conditions = (status?.conditions ?? []).map((each) =>
      each.type === "Progressing" ? rolling : each,
    );
    expect(progressOf({ ...rest, status: { ...status, conditions } })).toEqual({
      done: false,
      failed: false,
      text: 'Waiting for "p": 1 of 1 nodes ready; RollingOut: 1 ready for less than 60 s',
    });
  });
  test("lets no control character of a node's words reach the terminal", async () => {
    const say = (failed: boolean) => {
      const said: string[] = [];
      const look = async () => ({ done: true, failed, text: "n1: \u001b[2J gone" });
      const options = { timeoutMs: 1, watch: true, say: (text: string) => void said.push(text) };
      return waitForRollout("p", look, options).then(() => said);
    };
    expect(await say(false)).toEqual(["n1:  [2J gone"]);
    await expect(say(true)).rejects.toThrow(/^n1: {2}\[2J gone$/);
  });
});
