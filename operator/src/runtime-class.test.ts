import { RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import type { RuntimeClass } from "@bulkhead/lib/kube/resources.ts";
import { describe, expect, test } from "vitest";
import { desiredRuntimeClass, drift, ownerOf } from "./runtime-class.ts";

const wanted = (spec: object = {}, memory?: string) =>
  desiredRuntimeClass(
    {
      apiVersion: "",
      kind: "RuntimeProfile",
      metadata: { name: "sandboxed" },
      spec: RuntimeProfileSpec.parse({ handler: { gvisor: {} }, ...spec }),
    },
    memory,
  );

describe("The RuntimeClass of a profile", () => {
  test("has the profile's name as handler whatever its own name is", () => {
    expect(wanted({ runtimeClass: { name: "walled" } })).toMatchObject({
      metadata: { name: "walled" },
      handler: "sandboxed",
    });
  });
  test("sends pods to nodes of the selector whose canary passed", () => {
    expect(wanted({ nodeSelector: { a: "b" } }).scheduling?.nodeSelector).toEqual({
      a: "b",
      "handler.bulkhead.dev/sandboxed": "ready",
    });
  });
  test("has no scheduling when readiness is none and nothing is selected", () => {
    expect(wanted({ runtimeClass: { readiness: "none" } })).not.toHaveProperty("scheduling");
  });
  test("has overhead only for what is known", () => {
    expect(wanted({}, "64Mi").overhead).toEqual({ podFixed: { memory: "64Mi" } });
    const measured = { runtimeClass: { overhead: { memory: "measured", cpu: "50m" } } };
    expect(wanted(measured).overhead).toEqual({ podFixed: { cpu: "50m" } });
    expect(wanted()).not.toHaveProperty("overhead");
  });
  test("has the huge pages of the profile's machine, in whole ones, beside cpu or memory", () => {
    const huge = (kata: object) => ({ handler: { kata: { shim: "go", hugepages: true, ...kata } } });
    expect(wanted(huge({})).overhead?.podFixed).toEqual({ memory: "0", "hugepages-2Mi": "2048Mi" });
    expect(wanted(huge({ memory: "257Mi" }), "64Mi").overhead?.podFixed).toEqual({
      memory: "64Mi",
      "hugepages-2Mi": "258Mi",
    });
    const gibi = {
      ...huge({ memory: "1536Mi", hugepageSize: "1Gi" }),
      runtimeClass: { overhead: { cpu: "50m" } },
    };
    expect(wanted(gibi).overhead?.podFixed).toEqual({ cpu: "50m", "hugepages-1Gi": "2048Mi" });
    expect(wanted({ handler: { kata: {} } })).not.toHaveProperty("overhead");
  });
});

describe("Drift", () => {
  const desired = wanted({ runtimeClass: { overhead: { cpu: "0.25" } } }, "1024Mi");
  const table: [string, (is: RuntimeClass) => RuntimeClass, string[]][] = [
    ["is none when nothing differs", (is) => is, []],
    [
      "is none when the API server writes quantities its own way",
      (is) => ({ ...is, overhead: { podFixed: { memory: "1Gi", cpu: "250m" } } }),
      [],
    ],
    [
      "is none for labels that others add",
      (is) => ({ ...is, metadata: { ...is.metadata, labels: { ...is.metadata.labels, team: "a" } } }),
      [],
    ],
    ["is another handler", (is) => ({ ...is, handler: "runc" }), ["handler"]],
    [
      "is other overhead",
      (is) => ({ ...is, overhead: { podFixed: { memory: "1Mi", cpu: "250m" } } }),
      ["overhead"],
    ],
    [
      "is a selector that lost its label, and tolerations nobody asked for",
      (is) => ({ ...is, scheduling: { tolerations: [{ operator: "Exists" }] } }),
      ["scheduling.nodeSelector", "scheduling.tolerations"],
    ],
  ];
  test.each(table)("%s", (_title, change, found) => {
    expect(drift(change(desired), desired)).toEqual(found);
  });
});

test("A RuntimeClass is Bulkhead's only with both labels", () => {
  const labels = wanted().metadata.labels ?? {};
  expect(ownerOf(wanted())).toBe("sandboxed");
  expect(ownerOf({ metadata: { name: "x" }, handler: "x" })).toBeUndefined();
  const { "app.kubernetes.io/managed-by": _, ...without } = labels;
  expect(ownerOf({ metadata: { name: "x", labels: without }, handler: "x" })).toBeUndefined();
});
