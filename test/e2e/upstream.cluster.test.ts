import { afterAll, expect, test } from "vitest";
import { startCluster, stopCluster } from "../cluster/cluster.ts";
import { sharedDescription } from "../cluster/shared.ts";
import { e2eDescription, runSpecs } from "./run.ts";
import { focusOf, selection, untagged } from "./selection.ts";

const name = `${sharedDescription.name}-e2e`;
afterAll(() => stopCluster(name));

test("upstream's [NodeConformance] specs of the selection pass on nodes that Bulkhead alone serves", {
  timeout: 600_000,
}, async ({ signal }) => {
  const cluster = await startCluster(e2eDescription(name, "bulkhead"), { signal });
  const results = await runSpecs(cluster, { focus: selection.map(focusOf), procs: 4, timeout: "8m" }, signal);
  const others = results.filter(({ state }) => state !== "passed");
  expect(others.map((each) => `${each.state}: ${each.name}: ${each.message}`)).toEqual([]);
  expect(results.map((each) => untagged(each.name)).sort()).toEqual([...selection].sort());
});
