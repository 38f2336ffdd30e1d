import { expect, test } from "vitest";
import { missed } from "./goals.ts";
import { simulate } from "./simulate.ts";

/** `./dev scale` made small: what a busy machine cannot change is held to here, times only by hand. */
test("For 120 nodes and 3 profiles the operator asks for no more than what changed, and nothing while nothing does", async () => {
  const result = await simulate({
    nodes: 120,
    profiles: 3,
    habits: { seconds: { median: 0.3, longest: 2 }, failAtFirst: 0.01, flap: 0, heartbeatSeconds: 8 },
    phaseMs: 60_000,
    quietMs: 8_000,
  });
  expect(missed(result, false)).toEqual([]);
  // It was quiet, and there was something to ignore.
  expect(result.quiet.heartbeats + result.quiet.sameAgain).toBeGreaterThan(60);
  expect(result.quiet.kubelets).toBeGreaterThan(0);
}, 180_000);
