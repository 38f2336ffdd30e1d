import { RuntimeProfileSpec, type RuntimeProfileStatus } from "@bulkhead/lib/api/runtime-profile.ts";
import { expect, test } from "vitest";
import type { NodeFacts } from "./facts.ts";
import { declaredMemory, overheadMemory } from "./overhead.ts";

const node = (mebibytes: number, passed = true, selected = true): NodeFacts => ({
  name: `n${mebibytes}`,
  selected,
  observed: true,
  reported: {
    ...{ name: "p", phase: "Ready", revision: "r1", reason: "", message: "" },
    canary: {
      ...{ passed, at: "", startSeconds: 0, kernel: "", assertions: [], failures: 0 },
      overheadBytes: mebibytes * 2 ** 20,
    },
  },
});
const facts = (
  canaries: (number | NodeFacts)[],
  status: RuntimeProfileStatus = {},
  memory: string | undefined = "measured",
) => ({
  profile: {
    ...{ apiVersion: "", kind: "RuntimeProfile" as const, metadata: { name: "p" } },
    spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} }, runtimeClass: { overhead: { memory } } }),
    status,
  },
  nodes: canaries.map((each) => (typeof each === "number" ? node(each) : each)),
});
/** The status after it, of nodes that all have `currentRevision`. */
const after = (of: ReturnType<typeof facts>, currentRevision = "r1"): RuntimeProfileStatus => {
  const overhead = overheadMemory(of);
  return { currentRevision, ...(overhead && { overheadMemory: overhead }) };
};

test("measured memory is that of the dearest canary that passed on a node of the profile, in steps of 16 MiB", () => {
  const of = facts([12, 61.2, node(300, false), node(400, true, false)]);
  expect(declaredMemory(of)).toBe("64Mi");
  expect(overheadMemory(of)).toEqual({ declared: "64Mi", measured: "62Mi", revision: "" });
  expect(declaredMemory(facts([64]))).toBe("64Mi");
  expect(declaredMemory(facts([64.1]))).toBe("80Mi");
  expect(declaredMemory(facts([0.2]))).toBe("16Mi");
});

test("nothing is declared before the first canary", () => {
  expect(declaredMemory(facts([]))).toBeUndefined();
  expect(overheadMemory(facts([]))).toBeUndefined();
});

test("it is only raised while all nodes have one revision, also when nobody is there to measure it", () => {
  const first = after(facts([61], { currentRevision: "r1" }));
  expect(declaredMemory(facts([30], first))).toBe("64Mi");
  expect(declaredMemory(facts([66], first))).toBe("80Mi");
  const raised = after(facts([66], first));
  expect(declaredMemory(facts([60], raised))).toBe("80Mi");
  expect(overheadMemory(facts([], raised))).toEqual({ declared: "80Mi", measured: "61Mi", revision: "r1" });
});

test("it falls when the last node has a cheaper revision, and not before", () => {
  const before = after(facts([130], { currentRevision: "r1" }));
  // One node has it, the other not yet; then both; then the status says so.
  expect(declaredMemory(facts([30, 130], before))).toBe("144Mi");
  const both = after(facts([30, 30], before), "r2");
  expect(both.overheadMemory?.declared).toBe("144Mi");
  expect(declaredMemory(facts([30, 30], both))).toBe("32Mi");
  expect(after(facts([30, 30], both), "r2").overheadMemory).toMatchObject({
    declared: "32Mi",
    revision: "r2",
  });
});

test("what people say is declared whatever was measured, and is forgotten when they leave it to the canaries", () => {
  const said = facts([61], { currentRevision: "r1" }, "256Mi");
  expect(declaredMemory(said)).toBe("256Mi");
  expect(overheadMemory(said)).toEqual({ declared: "256Mi", measured: "61Mi" });
  expect(declaredMemory(facts([61], after(said)))).toBe("64Mi");
});
