import { expect, test } from "vitest";
import { audit, type Entry, type Listed } from "./ledger.ts";
import { roundOf } from "./plan.ts";

const entry = (changes: Partial<Entry> = {}): Entry => ({
  actor: 0,
  attempt: 0,
  program: { kind: "ends", code: 7, seconds: 0 },
  podId: "pod",
  id: "c",
  start: "done",
  ending: false,
  remove: "not asked",
  ...changes,
});
const listed = (changes: Partial<Listed> = {}): Listed => ({
  id: "c",
  actor: 0,
  attempt: 0,
  podId: "pod",
  state: "exited",
  exitCode: 7,
  reason: "Error",
  alive: false,
  lines: [1, 2, 3, 4, 5].map((line) => `line ${line}`),
  ...changes,
});
const none = { monitors: new Set<string>(), processes: new Set<string>(), unwritable: false };

test("the audit is content with what was asked for", () => {
  expect(audit([entry()], [listed()], none)).toEqual([]);
  expect(audit([entry({ ending: true })], [listed({ exitCode: 137 })], none)).toEqual([]);
  expect(audit([entry({ remove: "done" })], [], none)).toEqual([]);
});

test.each([
  ["a wrong exit code", entry(), listed({ exitCode: 255 }), "possible is 7"],
  ["a lost container", entry(), undefined, "is lost"],
  ["a removed one that is there", entry({ remove: "done" }), listed(), "although it was removed"],
  ["one that nobody asked for", entry(), listed({ id: "d", actor: 3 }), "nobody asked for it"],
  ["a record without a process", entry(), listed({ state: "running" }), "without a process"],
  ["a process without a record", entry(), listed({ alive: true }), "its process runs"],
  ["one that was started and waits", entry(), listed({ state: "created" }), "although it was started"],
  ["a started one with StartError", entry(), listed({ reason: "StartError" }), "although it was started"],
  ["lost lines", entry(), listed({ lines: ["line 1"] }), "instead of 5 lines"],
])("the audit finds %s", (_, asked, found, words) => {
  expect(audit([asked], found ? [found] : [], none).join("\n")).toContain(words);
});

test("a monitor that somebody killed, or that could write nothing, explains a lost exit code", () => {
  const hits = { ...none, monitors: new Set(["c"]) };
  expect(audit([entry()], [listed({ exitCode: 255 })], hits)).toEqual([]);
  expect(audit([entry()], [listed({ exitCode: 255 })], { ...none, unwritable: true })).toEqual([]);
});

test("a seed gives the same rounds again, and another seed others", () => {
  expect(roundOf(5, 3)).toEqual(roundOf(5, 3));
  expect(roundOf(5, 3)).not.toEqual(roundOf(6, 3));
  expect(roundOf(5, 3)).not.toEqual(roundOf(5, 4));
});
