import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { createStore } from "@bulkhead/lib/kube/store.ts";
import { expect, test } from "vitest";
import { slimPods } from "./slim.ts";

const pod = (name: string, more: object = {}, phase = "Running") =>
  JSON.parse(
    JSON.stringify({
      metadata: { name, namespace: "tenant", uid: name, resourceVersion: "1", labels: { app: "a" } },
      spec: { runtimeClassName: "sandboxed", hostPID: true, nodeName: "n", containers: [] },
      status: { phase },
      ...more,
    }),
  );

test("Of a pod its name, its class and what it breaks are kept, once for all that have the same; of one that ended nothing", () => {
  const slim = slimPods();
  const [one, other] = [slim(pod("a")), slim(pod("b"))];
  expect(one).toEqual({
    metadata: { name: "a", namespace: "tenant" },
    spec: { runtimeClassName: "sandboxed" },
    broken: ["HostPID"],
  });
  expect(other?.spec).toBe(one?.spec);
  expect(other?.broken).toBe(one?.broken);
  expect(slim(pod("c", {}, "Succeeded"))).toBeUndefined();
  expect(slim(pod("d", { spec: { containers: [] } }))).toEqual({
    metadata: { name: "d", namespace: "tenant" },
  });
});

test("100,000 pods are kept in less than 40 MB", () => {
  const slim = slimPods();
  const store = createStore<NonNullable<ReturnType<typeof slim>>>({
    runtimeClass: ({ spec }) => spec?.runtimeClassName,
    namespace: ({ metadata }) => metadata.namespace,
  });
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  gc();
  const before = process.memoryUsage().heapUsed;
  for (let at = 0; at < 100_000; at++) {
    const metadata = { name: `a-deployment-of-a-tenant-6f7d9c8b4-${at}`, namespace: `tenant-${at % 500}` };
    store.set(slim(pod("", { metadata }))!);
  }
  gc();
  expect((process.memoryUsage().heapUsed - before) / 1e6).toBeLessThan(40);
});
