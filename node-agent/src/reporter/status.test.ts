import { expect, test } from "vitest";
import { heartbeatMs, newHappenings, noteOf, statusToWrite } from "./status.ts";

const report = { kernel: "6.18", profiles: [] };
const first = statusToWrite(report, "1", undefined, 0);

test("the first report is written, with a heartbeat", () => {
  expect(first).toEqual({ ...report, agentVersion: "1", heartbeat: "1970-01-01T00:00:00Z" });
});

test("an unchanged report is written again only as a heartbeat", () => {
  const last = { status: first!, at: 0 };
  expect(statusToWrite(report, "1", last, heartbeatMs - 1)).toBeUndefined();
  expect(statusToWrite(report, "1", last, heartbeatMs)).toMatchObject({ heartbeat: "1970-01-01T00:00:30Z" });
});

test("a change is written at once", () => {
  expect(statusToWrite({ ...report, kvm: true }, "1", { status: first!, at: 0 }, 1)).toMatchObject({
    kvm: true,
  });
});

const happened = (seq: number) => ({
  seq,
  at: "",
  type: "Normal" as const,
  reason: "Ready",
  message: `m${seq}`,
});

test("each happening becomes one Event, also when the installer starts counting anew", () => {
  const happenings = [happened(1), happened(2)];
  expect(newHappenings({ instance: "a", happenings }, { instance: "a", seq: 1 })).toEqual([happened(2)]);
  expect(newHappenings({ instance: "b", happenings }, { instance: "a", seq: 2 })).toEqual(happenings);
});

test("an Event's text names the profile first", () => {
  expect(noteOf({ profile: "sandboxed", message: "passed" })).toBe("sandboxed: passed");
});
