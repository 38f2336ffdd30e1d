import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import type { Pod } from "@bulkhead/lib/kube/resources.ts";
import { expect, test } from "vitest";
import { annotatedDrains, drainsOf, inTheWay } from "./drain.ts";

const drain = { revision: "0123456789", since: "2026-01-01T00:00:00.000Z" };
const runtime = (text: string): NodeRuntime => ({
  apiVersion: "",
  kind: "NodeRuntime",
  metadata: { name: "n", annotations: { "bulkhead.dev/drains": text } },
  spec: { profiles: [] },
});

test.each([
  ["nothing", undefined],
  ["no JSON", runtime("drain it")],
  ["another shape", runtime('{"p": true}')],
  ["a time that is none", runtime('{"p": {"revision": "0123456789", "since": "yesterday"}}')],
])("an annotation that is %s names no drain", (_title, is) => {
  expect(annotatedDrains(is)).toEqual(new Map());
});

test("what was decided is newer than what is written", () => {
  const written = runtime(JSON.stringify({ p: drain, q: drain }));
  const later = { ...drain, since: "2026-01-02T00:00:00.000Z" };
  const decided = new Map([
    [
      "n",
      new Map([
        ["p", null],
        ["r", later],
      ] as const),
    ],
  ]);
  expect(drainsOf("n", written, { decided, over: new Set() })).toEqual(
    new Map([
      ["q", drain],
      ["r", later],
    ]),
  );
});

test("pods of the class stand in the way but those that ended, come back, or are the kubelet's own", () => {
  const pod = (
    name: string,
    more: Partial<Pod["metadata"]> = {},
    phase = "Running",
    runtimeClassName = "c",
  ): Pod => ({
    metadata: { name, ...more },
    spec: { runtimeClassName },
    status: { phase },
  });
  const ownedBy = (kind: string) => [{ apiVersion: "apps/v1", kind, name: "o", uid: "o", controller: true }];
  const found = [
    pod("plain"),
    pod("leaving", { deletionTimestamp: "2026-01-01T00:00:00Z" }),
    pod("replicated", { ownerReferences: ownedBy("ReplicaSet") }),
    pod("daemon", { ownerReferences: ownedBy("DaemonSet") }),
    pod("static", { annotations: { "kubernetes.io/config.mirror": "x" } }),
    pod("ended", {}, "Succeeded"),
    pod("another's", {}, "Running", "d"),
  ];
  expect(inTheWay(found, "c").map(({ metadata }) => metadata.name)).toEqual([
    "plain",
    "leaving",
    "replicated",
  ]);
});
