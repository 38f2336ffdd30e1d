import { expect, test } from "vitest";
import {
  detailsMs,
  heartbeatMs,
  isSettled,
  newHappenings,
  noteOf,
  statusToWrite,
  withReadySince,
} from "./status.ts";

const report = { kernel: "6.18", profiles: [] };
const first = statusToWrite(report, "1", undefined, 0);

test("the first report is written, with a heartbeat", () => {
  expect(first).toEqual({ ...report, agentVersion: "1", heartbeat: "1970-01-01T00:00:00Z" });
});

test("an unchanged report is written again only as a heartbeat", () => {
  const last = { status: first!, at: 0 };
  expect(statusToWrite(report, "1", last, heartbeatMs - 1)).toBeUndefined();
  expect(statusToWrite(report, "1", last, heartbeatMs)).toMatchObject({ heartbeat: "1970-01-01T00:00:30Z" });
  // A clock that was set back.
  expect(statusToWrite(report, "1", last, last.at - 60_000)).toBeDefined();
});

test("a change is written at once", () => {
  expect(statusToWrite({ ...report, kvm: true }, "1", { status: first!, at: 0 }, 1)).toMatchObject({
    kvm: true,
  });
});

const proven = (at: string, startSeconds: number, passed = true) => ({
  profiles: [
    {
      ...{ name: "p", phase: "Ready" as const, revision: "a", reason: "CanaryPassed", message: "" },
      ...{ startSeconds: { p50: startSeconds, p99: startSeconds } },
      canary: { passed, at, startSeconds, kernel: "4.4.0", assertions: [], failures: 0 },
    },
  ],
});

test("with a Lease, time alone writes nothing, latencies seldom, and news at once", () => {
  const last = { status: statusToWrite(proven("1", 1), "1", undefined, 0)!, at: 0 };
  const written = (now: number, report: object, signed: boolean) =>
    statusToWrite(report as never, "1", last, now, signed) !== undefined;
  expect(written(detailsMs * 9, proven("1", 1), true)).toBe(false);
  expect(written(detailsMs - 1, proven("2", 2), true)).toBe(false);
  expect(written(detailsMs, proven("2", 2), true)).toBe(true);
  expect(written(1, proven("2", 2, false), true)).toBe(true);
  // Without one the status is the sign of life, and latencies come with it.
  expect(written(heartbeatMs - 1, proven("2", 2), false)).toBe(false);
  expect(written(heartbeatMs, proven("2", 2), false)).toBe(true);
});

test("a profile has been ready since it serves that revision, whichever life of the agent said so first", () => {
  const ready = proven("", 1).profiles[0]!;
  const since = (now: number, before: object[] | undefined, more: object = {}) =>
    withReadySince({ profiles: [{ ...ready, ...more }] }, before as never, now).profiles?.[0]?.readySince;
  const [first, second] = ["1970-01-01T00:00:05Z", "1970-01-01T00:01:00Z"];
  expect(since(5_900, undefined)).toBe(first);
  const before = [{ ...ready, readySince: first }];
  expect(since(60_000, before)).toBe(first);
  // Its files are looked at and a canary runs after each start of the agent: it serves meanwhile.
  expect(since(60_000, before, { phase: "Verifying" })).toBe(first);
  expect(since(60_000, before, { revision: "b" })).toBe(second);
  expect(since(60_000, before, { phase: "Failed" })).toBeUndefined();
  expect(since(60_000, [{ ...ready, phase: "Failed", readySince: first }])).toBe(second);
  // An agent of before wrote none.
  expect(since(60_000, [ready])).toBe(second);
  expect(withReadySince({}, before, 0)).toEqual({});
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

type Seen = { observedGeneration?: number; fronted?: boolean; profiles?: string[] };
const settled: [title: string, seen: Seen, generation: number, settled: boolean][] = [
  ["before anything was wanted of it", {}, 0, false],
  ["on a node of which nothing is wanted", { observedGeneration: 0 }, 0, true],
  ["while it is at work on an older wish", { observedGeneration: 1, profiles: ["Ready b"] }, 2, false],
  ["while a canary runs", { observedGeneration: 2, profiles: ["Ready b", "Verifying b"] }, 2, false],
  ["when all are proven", { observedGeneration: 2, profiles: ["Ready b", "Ready c"] }, 2, true],
  ["with a profile that never worked", { observedGeneration: 2, profiles: ["Ready b", "Failed"] }, 2, true],
  ["with one that worked before", { observedGeneration: 2, profiles: ["Failed b"] }, 2, false],
  ["with a revision that was put back", { observedGeneration: 2, profiles: ["RolledBack a"] }, 2, true],
  [
    "where its runtime does not come up",
    { observedGeneration: 2, fronted: true, profiles: ["Failed"] },
    2,
    false,
  ],
  ["where none ever came up", { observedGeneration: 2, fronted: false, profiles: ["Failed"] }, 2, true],
];
test.each(settled)("whether the agent is settled %s", (_title, seen, generation, expected) => {
  const { observedGeneration, fronted, profiles = [] } = seen;
  const broken = { type: "RuntimeReady", status: "False", reason: "EngineFailed", message: "" } as const;
  expect(
    isSettled(
      {
        ...(observedGeneration === undefined ? {} : { observedGeneration }),
        ...(fronted === undefined
          ? {}
          : {
              engine: { name: "containerd", version: "2", socket: "", fronted },
              conditions: [{ ...broken, lastTransitionTime: "" }],
            }),
        profiles: profiles.map((text) => {
          const [phase, revision = ""] = text.split(" ");
          return { name: "p", phase: phase as "Ready", revision, reason: "", message: "" };
        }),
      },
      generation,
    ),
  ).toBe(expected);
});
