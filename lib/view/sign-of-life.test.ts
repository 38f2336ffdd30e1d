import { expect, test } from "vitest";
import { apiVersion } from "../api/group.ts";
import type { NodeRuntime } from "../api/node-runtime.ts";
import { asHeard, heardOf } from "./sign-of-life.ts";

const reported = (heartbeat?: string): NodeRuntime => ({
  apiVersion,
  kind: "NodeRuntime",
  metadata: { name: "a" },
  spec: { profiles: [] },
  status: heartbeat === undefined ? {} : { heartbeat },
});
const lease = (renewTime: string) => ({ metadata: { name: "a" }, spec: { renewTime } });

test.each([
  ["never", undefined, undefined, undefined],
  ["in its status", "1970-01-01T00:00:01Z", undefined, 1000],
  ["in its Lease, later", "1970-01-01T00:00:01Z", "1970-01-01T00:00:02.000000Z", 2000],
  [
    "in its status, later: its agent is older than Leases",
    "1970-01-01T00:00:03Z",
    "1970-01-01T00:00:02Z",
    3000,
  ],
  ["in a Lease alone: that was another NodeRuntime's", undefined, "1970-01-01T00:00:02Z", undefined],
  ["in a Lease without a time", "1970-01-01T00:00:01Z", "soon", 1000],
])("An agent is heard %s", (_where, heartbeat, renewTime, ms) => {
  expect(heardOf(reported(heartbeat), renewTime === undefined ? undefined : lease(renewTime))).toBe(ms);
});

test("What people read has the later time, and all else as it was", () => {
  const runtime = { ...reported("1970-01-01T00:00:01Z"), spec: { profiles: [] } };
  expect(asHeard(runtime, lease("1970-01-01T00:00:02Z"))).toEqual({
    ...runtime,
    status: { heartbeat: "1970-01-01T00:00:02.000Z" },
  });
  expect(asHeard(reported(), lease("1970-01-01T00:00:02Z"))).toEqual(reported());
});
