import { describe, expect, test } from "vitest";
import { setCondition, transitions } from "./conditions.ts";

const ready = { type: "Ready", status: "True", reason: "AllReady", message: "" } as const;

describe("setCondition()", () => {
  test("gives a new condition the time", () => {
    expect(setCondition([], ready, 5_000)).toEqual([
      { ...ready, lastTransitionTime: "1970-01-01T00:00:05Z" },
    ]);
  });
  test("keeps the transition time while the status stays, whatever the reason", () => {
    const before = setCondition([], ready, 5_000);
    const after = setCondition(before, { ...ready, reason: "Other", message: "m" }, 9_000);
    expect(after[0]).toMatchObject({ reason: "Other", lastTransitionTime: "1970-01-01T00:00:05Z" });
  });
  test("moves the transition time with the status", () => {
    const before = setCondition([], ready, 5_000);
    const after = setCondition(before, { ...ready, status: "False" }, 9_000);
    expect(after[0]?.lastTransitionTime).toBe("1970-01-01T00:00:09Z");
  });
  test("leaves other conditions and their order alone", () => {
    const other = { ...ready, type: "Other" };
    const before = setCondition(setCondition([], ready, 0), other, 0);
    expect(setCondition(before, ready, 9_000)).toEqual(before);
  });
});

test("transitions() are changes of status or reason, not of message", () => {
  const before = setCondition([], ready, 0);
  expect(transitions(before, setCondition(before, { ...ready, message: "m" }, 0))).toEqual([]);
  expect(transitions(before, setCondition(before, { ...ready, reason: "R" }, 0))).toHaveLength(1);
  expect(transitions([], before)).toHaveLength(1);
});
