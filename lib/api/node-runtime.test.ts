import { describe, expect, test } from "vitest";
import { type ProfileStatus, serves } from "./node-runtime.ts";

const canary = { passed: true, at: "", startSeconds: 1, kernel: "", assertions: [], failures: 0 };
const reported: ProfileStatus = { name: "p", phase: "Ready", revision: "a", reason: "", message: "", canary };

describe("New pods of a profile start on a node", () => {
  test("where its canary passed, and where another revision was rolled back after its own did not", () => {
    expect(serves(reported)).toBe(true);
    const failed = { ...canary, passed: false };
    expect(serves({ ...reported, phase: "RolledBack", attemptedRevision: "b", canary: failed })).toBe(true);
  });

  test("and not where the canary of what serves failed, or nothing serves", () => {
    expect(serves({ ...reported, canary: { ...canary, passed: false } })).toBe(false);
    expect(serves({ ...reported, phase: "Failed", revision: "" })).toBe(false);
    expect(serves(undefined)).toBe(false);
  });
});
