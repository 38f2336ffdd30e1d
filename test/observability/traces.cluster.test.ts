import { paths } from "@bulkhead/lib/api/paths.ts";
import { afterAll, beforeAll, expect, test } from "vitest";
import { bulkheadCluster, profileReady, tracesPort } from "../cluster/bulkhead.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { pathOf, type Receiver, startReceiver } from "./otlp.ts";

/** A profile's way through the live cluster, as traces: the chart's values turned them on. */

const name = "traced";
/** From the reconcile that gave the profile to the node, to what the node's agent did about it. */
const assign = "reconcile Node > assign";
const pass = `${assign} > desired state > tell the installer > pass`;
let cluster: Cluster;
let receiver: Receiver;

beforeAll(async () => {
  cluster = await bulkheadCluster();
  receiver = await startReceiver(cluster.plan.address, tracesPort);
});
afterAll(async () => {
  await cluster?.kubectl(["delete", "runtimeprofile", name, "--ignore-not-found", "--wait"]);
  await receiver?.[Symbol.asyncDispose]();
});

test("a new profile is a trace from the operator's write to the canary in the runtime and the report on it", async () => {
  await cluster.kubectl(["apply", "-f", "-"], {
    input: JSON.stringify({
      apiVersion: "bulkhead.dev/v1alpha1",
      kind: "RuntimeProfile",
      metadata: { name },
      spec: { handler: { runc: {} }, nodeSelector: { "bulkhead.dev/test": "one" } },
    }),
  });
  await profileReady(cluster, name);
  const told = async () => {
    const spans = await receiver.spans();
    return spans.map(
      (span) =>
        `${span.service}: ${pathOf(span, spans).join(" > ").replaceAll("runtime.v1.RuntimeService/", "")}`,
    );
  };
  await expect
    .poll(told, { timeout: 60_000 })
    .toEqual(
      expect.arrayContaining([
        "bulkhead-operator: reconcile RuntimeProfile > create RuntimeClass",
        "bulkhead-operator: reconcile RuntimeProfile > apply the status of RuntimeProfile",
        `bulkhead-operator: ${assign} > apply NodeRuntime`,
        `bulkhead-agent: ${pass} > write`,
        `bulkhead-agent: ${pass} > await-handler`,
        `bulkhead-agent: ${pass} > canary`,
        `bulkhead-runtime: ${pass} > canary > RunPodSandbox > network > cni bridge ADD`,
        `bulkhead-runtime: ${pass} > canary > StartContainer > start > runc start`,
        `bulkhead-runtime: ${pass} > canary > RemovePodSandbox`,
        `bulkhead-reporter: ${assign} > report > apply the status of NodeRuntime`,
      ]),
    );
  const spans = await receiver.spans();
  const about = (what: string) =>
    spans.find((span) => span.name === what && span.attributes["bulkhead.profile"] === name);
  expect(about("reconcile RuntimeProfile")?.attributes["bulkhead.profile.revision"]).toMatch(
    /^[0-9a-f]{10}$/,
  );
  const files = spans.map(({ attributes }) => attributes["file.path"]);
  expect(files).toContain(`${paths.handlers}/${name}.yaml`);
  // Nothing whose first span never came.
  const known = new Set(spans.map(({ spanId }) => spanId));
  const orphans = spans.filter(({ parentSpanId }) => parentSpanId !== "" && !known.has(parentSpanId));
  expect(orphans.filter(({ traceId }) => traceId === about("canary")?.traceId)).toEqual([]);
});
