import { describe, expect, test } from "vitest";
import {
  type Canary,
  next,
  type ProfileEvent,
  type ProfileState,
  retryDelay,
  servesSince,
  statusOf,
} from "./state.ts";

const canary: Canary = {
  passed: true,
  at: "2026-01-01T00:00:00Z",
  startSeconds: 0.2,
  kernel: "4.19.0-gvisor",
  assertions: ["kernel-differs"],
  failures: 0,
};
const after = (events: ProfileEvent[], from?: ProfileState): ProfileState =>
  events.reduce<ProfileState | undefined>((state, event) => next(state, event), from)!;
const wanted: ProfileEvent = { on: "wanted", revision: "b" };
const ready = after([wanted, { on: "installing" }, { on: "verifying" }, { on: "passed", canary }]);
const broken: ProfileEvent = { on: "failed", reason: "CanaryFailed", message: "no wall", serving: false };

describe("a profile's life", () => {
  test("leads from wanted over installing and verifying to ready", () => {
    expect(after([wanted])).toMatchObject({ phase: "Pending" });
    expect(after([wanted, { on: "installing" }])).toMatchObject({ phase: "Installing" });
    expect(after([wanted, { on: "installing" }, { on: "verifying" }])).toMatchObject({ phase: "Verifying" });
    expect(ready).toEqual({ phase: "Ready", revision: "b", canary });
  });

  test("stays as it is when the same revision is wanted again", () => {
    expect(next(ready, wanted)).toBe(ready);
  });

  test("begins anew for another revision and remembers the one that serves", () => {
    expect(next(ready, { on: "wanted", revision: "c", good: "b" })).toEqual({
      phase: "Pending",
      revision: "c",
      good: "b",
    });
  });

  test("shows a failure until a try has a result of its own", () => {
    const failed = after([broken], after([wanted]));
    expect(after([{ on: "installing" }, { on: "verifying" }], failed)).toBe(failed);
    expect(after([{ on: "passed", canary }], failed)).toMatchObject({ phase: "Ready" });
  });

  test("counts failures in a row", () => {
    expect(after([wanted, broken, broken, broken])).toMatchObject({ failures: 3 });
    expect(after([wanted, broken, { on: "passed", canary }, broken])).toMatchObject({ failures: 1 });
  });

  test("that was on its way out and is wanted again begins anew", () => {
    expect(after([{ on: "removing", pods: [] }, wanted], ready)).toMatchObject({ phase: "Pending" });
  });
});

describe("NodeRuntime.status", () => {
  const status = (state: ProfileState) => statusOf("sandboxed", state, {});

  test("names the revision that serves, and the one tried when it is another", () => {
    expect(status(ready)).toMatchObject({ phase: "Ready", revision: "b", reason: "CanaryPassed" });
    expect(status(ready)).not.toHaveProperty("attemptedRevision");
    expect(status(after([wanted, broken]))).toMatchObject({ revision: "", attemptedRevision: "b" });
    expect(
      status(next(after([wanted]), { on: "rolled-back", good: "a", reason: "CanaryFailed", message: "m" })),
    ).toMatchObject({ phase: "RolledBack", revision: "a", attemptedRevision: "b" });
  });

  test("names the pods that hold a removal up, ten of them at most", () => {
    const pods = Array.from({ length: 12 }, (_, i) => `ns/p${i}`);
    expect(status(next(ready, { on: "removing", pods })).message).toMatch(
      /^Waiting for pods: ns\/p0, .*ns\/p9 and 2 more$/,
    );
  });

  test("clips a message to what the schema takes", () => {
    const long = next(undefined, { on: "failed", reason: "R", message: "x".repeat(5000), serving: false });
    expect(status(long).message.length).toBeLessThanOrEqual(1024);
  });
});

test("a failed profile is tried again after 5 s, ever later, at most 5 minutes", () => {
  expect([1, 2, 3, 20].map(retryDelay)).toEqual([5000, 10_000, 20_000, 300_000]);
});

describe("after a boot", () => {
  const good = { revision: "b", files: {}, boot: "one" };
  test.each([
    ["serves on while the node runs, whatever becomes of the agent", good, "one", "b"],
    ["is not believed by another boot's canary", good, "two", undefined],
    ["of an agent that did not write its boot down serves on", { revision: "b", files: {} }, "two", "b"],
    ["that never was serves nothing", undefined, "two", undefined],
  ])("a revision %s", (_title, record, boot, serves) => {
    expect(servesSince(record, boot)).toBe(serves);
  });

  test("what was put back unproven is no revision that serves", () => {
    const state = next(after([wanted]), {
      on: "rolled-back",
      good: "",
      reason: "CanaryFailed",
      message: "x",
    });
    expect(statusOf("p", state, {})).toMatchObject({
      phase: "RolledBack",
      revision: "",
      attemptedRevision: "b",
      message: expect.stringContaining("since the node booted"),
    });
  });
});
