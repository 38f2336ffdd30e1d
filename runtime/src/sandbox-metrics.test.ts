import { expect, test } from "vitest";
import { type Sandbox, sandboxMetrics } from "./sandbox-metrics.ts";

const sandbox = (i: number): Sandbox => ({
  id: `s${i}`,
  root: "/r",
  handler: "h",
  namespace: "n",
  pod: `p${i}`,
});

test("each pod's figures have the pod's name, and a sandbox that does not answer is counted", async () => {
  const text = await sandboxMetrics([sandbox(1), sandbox(2)], async (_root, id) => {
    if (id === "s2") throw new Error("no answer");
    return new Map([["fs_opens", 3]]);
  });
  expect(text).toContain('runsc_fs_opens{handler="h",namespace="n",pod="p1"} 3\n');
  expect(text).not.toContain('pod="p2"');
  expect(text).toContain("bulkhead_runtime_gvisor_silent_pods 1\n");
});

test("of more pods than are asked in one scrape the rest is counted", async () => {
  const text = await sandboxMetrics(
    Array.from({ length: 300 }, (_, i) => sandbox(i)),
    async () => new Map([["fs_opens", 1]]),
  );
  expect(text.match(/^runsc_fs_opens\{/gm)).toHaveLength(250);
  expect(text).toContain("bulkhead_runtime_gvisor_silent_pods 50\n");
});

test("a node without gVisor's pods has no such metric", async () => {
  expect(await sandboxMetrics([])).toBe("");
});
