import { RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import type { LabelSelector } from "@bulkhead/lib/api/tenancy.ts";
import type { KubeObject } from "@bulkhead/lib/kube/object.ts";
import { describe, expect, test } from "vitest";
import { claimsOf, isElder } from "./facts.ts";
import { desiredPolicies, profileOf } from "./policies.ts";
import type { WatchedPod } from "./rules.ts";
import { celSelects, selects } from "./selector.ts";
import { newlyOutside } from "./status.ts";
import { isAtLeast } from "./wall.ts";

const spec = (handler: object, tenancy?: object): RuntimeProfileSpec =>
  RuntimeProfileSpec.parse({ handler, ...(tenancy ? { tenancy } : {}) });

type Operator = NonNullable<LabelSelector["matchExpressions"]>[number]["operator"];
const by = (operator: Operator, ...values: string[]): LabelSelector => ({
  matchExpressions: [{ key: "a", operator, ...(values.length > 0 ? { values } : {}) }],
});

// That CEL says the same is asked of the API server: judging.host.test.ts.
describe("A selector", () => {
  const table: [title: string, selector: LabelSelector, labels: Record<string, string>, takesIn: boolean][] =
    [
      ["takes in an equal label", { matchLabels: { a: "1" } }, { a: "1", b: "2" }, true],
      ["leaves another value", { matchLabels: { a: "1" } }, { a: "2" }, false],
      ["leaves a label that is not there", { matchLabels: { a: "" } }, {}, false],
      ["takes in one value of several", by("In", "1", "2"), { a: "2" }, true],
      ["leaves none of several", by("In", "1", "2"), {}, false],
      ["takes in what has no label at all by NotIn", by("NotIn", "1"), {}, true],
      ["leaves a value by NotIn", by("NotIn", "1"), { a: "1" }, false],
      ["takes in what exists", by("Exists"), { a: "" }, true],
      ["leaves what does not exist", by("Exists"), {}, false],
      ["takes in what does not exist", by("DoesNotExist"), {}, true],
      ["leaves what exists", by("DoesNotExist"), { a: "" }, false],
      ["needs all of its parts", { matchLabels: { a: "1" }, ...by("DoesNotExist") }, { a: "1" }, false],
    ];
  test.each(table)("%s", (_title, selector, labels, takesIn) => {
    expect(selects(selector, labels)).toBe(takesIn);
  });
  test("becomes CEL with keys and values as literals", () => {
    expect(celSelects({ matchLabels: { 'a"': "\\" }, ...by("NotIn", "1", "2") }, "x")).toBe(
      '("a\\"" in x && x["a\\""] in ["\\\\"]) && !("a" in x && x["a"] in ["1","2"])',
    );
  });
});

describe("A wall is as good as another", () => {
  const table: [offered: object, required: object, good: boolean][] = [
    [{ gvisor: {} }, { runc: {} }, true],
    [{ runc: {} }, { gvisor: {} }, false],
    [{ crun: {} }, { runc: {} }, true],
    [{ kata: {} }, { gvisor: {} }, true],
    [{ gvisor: {} }, { kata: {} }, false],
    [{ firecracker: {} }, { kata: {} }, true],
    [{ gvisor: { network: "host" } }, { gvisor: {} }, false],
    [{ gvisor: {} }, { gvisor: { network: "host" } }, true],
    [{ gvisor: { nvproxy: {} } }, { gvisor: {} }, false],
    [{ gvisor: { flags: ["--host-uds=all"] } }, { gvisor: {} }, false],
    [{ gvisor: { tenant: { flags: ["host-uds"] } } }, { gvisor: {} }, false],
    [{ gvisor: { tenant: { volumeHints: true } } }, { gvisor: {} }, true],
    [{ shim: { runtimeType: "io.containerd.x.v1" } }, { runc: {} }, false],
    [{ kata: {} }, { shim: { runtimeType: "io.containerd.x.v1" } }, false],
  ];
  test.each(table)("%j for %j: %s", (offered, required, good) => {
    expect(isAtLeast(spec(offered), spec(required))).toBe(good);
  });

  test("is as good as none when no canary has to prove it", () => {
    const unproven = { ...spec({ kata: {} }), probe: { interval: "60s", assertIsolation: false } };
    expect(isAtLeast(unproven, spec({ runc: {} }))).toBe(false);
    expect(isAtLeast(spec({ kata: {} }), unproven)).toBe(true);
  });
});

describe("A claim", () => {
  const tenancy = { namespaceSelector: { matchLabels: { t: "1" } }, exempt: { namespaces: ["free"] } };
  const profile = { spec: spec({ gvisor: {} }, tenancy) };
  const namespace = (name: string, labels: Record<string, string> = { t: "1" }): KubeObject => ({
    metadata: { name, labels },
  });
  const pod = (name: string, runtimeClassName?: string, broken?: string[]): WatchedPod => ({
    metadata: { name },
    ...(runtimeClassName ? { spec: { runtimeClassName } } : {}),
    ...(broken ? { broken } : {}),
  });
  const claim = (is: {
    namespaces: KubeObject[];
    pods?: Record<string, WatchedPod[]>;
    elders?: Parameters<typeof claimsOf>[2]["elders"];
  }) =>
    claimsOf(
      profile,
      ["p", "vm"],
      { elders: is.elders ?? [], reserved: ["kube-system"] },
      is.namespaces,
      (name) => is.pods?.[name] ?? [],
    );

  test("leaves exempt and reserved namespaces, and those of other labels", () => {
    const namespaces = [namespace("a"), namespace("free"), namespace("kube-system"), namespace("b", {})];
    expect(claim({ namespaces })).toEqual({ namespaces: 1, conflicts: [], outside: [] });
  });
  test("gives way to an older profile, but not in a namespace that is exempt there", () => {
    const elders = [
      { name: "old", tenancy: spec({ runc: {} }, { ...tenancy, exempt: { namespaces: ["b"] } }).tenancy! },
    ];
    expect(claim({ namespaces: [namespace("c"), namespace("a"), namespace("b")], elders })).toEqual({
      namespaces: 1,
      conflicts: [
        { namespace: "a", profile: "old" },
        { namespace: "c", profile: "old" },
      ],
      outside: [],
    });
  });
  test("counts who is outside, the fullest namespace first, and what reaches the node only", () => {
    const pods = {
      a: [pod("z"), pod("y", "p", ["Capabilities"]), pod("x", "p"), pod("w", "vm")],
      b: [pod("v", "other"), pod("u", "p", ["Capabilities", "HostPID"])],
    };
    expect(claim({ namespaces: [namespace("a"), namespace("b")], pods }).outside).toEqual([
      { namespace: "b", pods: 2, example: "u", reason: "HostPID" },
      { namespace: "a", pods: 1, example: "z", reason: "RuntimeClass" },
    ]);
  });
  test("is an Event where more are outside than the status says", () => {
    const outside = (namespace: string, pods: number) => ({
      namespace,
      pods,
      example: "x",
      reason: "HostPID",
    });
    const status = (...list: ReturnType<typeof outside>[]) => ({
      namespaces: 3,
      podsOutside: 0,
      outside: list,
    });
    expect(
      newlyOutside(
        status(outside("a", 2), outside("b", 2)),
        status(outside("a", 3), outside("b", 1), outside("c", 1)),
      ).map(({ namespace }) => namespace),
    ).toEqual(["a", "c"]);
    expect(newlyOutside(undefined, undefined)).toEqual([]);
  });
  test("of the older comes first, and of two of one second the one whose name does", () => {
    const is = (name: string, second: number, mode: "Enforce" | "Audit" = "Enforce") => ({
      metadata: { name, creationTimestamp: `2026-01-01T00:00:0${second}Z` },
      mode,
    });
    expect(isElder(is("z", 0), is("a", 1))).toBe(true);
    expect(isElder(is("a", 0), is("b", 0))).toBe(true);
    expect(isElder(is("b", 0), is("a", 0))).toBe(false);
    // Of one that only records no other's wall is opened, however old it is.
    expect(isElder(is("a", 0, "Audit"), is("b", 1))).toBe(false);
    expect(isElder(is("b", 1), is("a", 0, "Audit"))).toBe(true);
  });
});

describe("The policies of a profile", () => {
  const render = (handler: object, tenancy: object = {}, defaultClass?: string) => {
    const full = { namespaceSelector: { matchLabels: { t: "1" } }, ...tenancy };
    const parsed = spec(handler, full);
    return desiredPolicies({
      profile: { apiVersion: "", kind: "RuntimeProfile", metadata: { name: "p", uid: "u" }, spec: parsed },
      tenancy: parsed.tenancy!,
      classes: ["p"],
      elders: [],
      reserved: ["kube-system"],
      ...(defaultClass ? { defaultClass } : {}),
    });
  };
  test("give a class before they judge it", () => {
    expect(render({ gvisor: {} }, {}, "p").map(({ resource }) => resource.kind)).toEqual([
      "MutatingAdmissionPolicy",
      "MutatingAdmissionPolicyBinding",
      "ValidatingAdmissionPolicy",
      "ValidatingAdmissionPolicyBinding",
      "ValidatingAdmissionPolicyBinding",
      "ValidatingAdmissionPolicy",
      "ValidatingAdmissionPolicyBinding",
    ]);
  });
  test("fail shut in Enforce and open in Audit", () => {
    const failure = (mode: string) => [
      ...new Set(
        render({ gvisor: {} }, { mode }, "p").flatMap(({ object }) => object.spec.failurePolicy ?? []),
      ),
    ];
    expect(failure("Enforce")).toEqual(["Fail"]);
    expect(failure("Audit")).toEqual(["Ignore"]);
  });
  test("belong to the profile by name, label and owner", () => {
    for (const { object } of render({ runc: {} })) {
      expect(profileOf(object.metadata.name)).toBe("p");
      expect(object.metadata.labels).toMatchObject({ "bulkhead.dev/profile": "p" });
      expect(object.metadata.ownerReferences).toMatchObject([{ kind: "RuntimeProfile", uid: "u" }]);
    }
    expect(profileOf("p.example.com")).toBeUndefined();
  });
  test("are small, also with everything that may be exempt", () => {
    const exempt = {
      namespaces: Array.from({ length: 64 }, (_, at) => `${at}`.padEnd(63, "n")),
      serviceAccounts: Array.from({ length: 64 }, (_, at) => `${`${at}`.padEnd(63, "n")}/builder`),
    };
    for (const { object } of render({ runc: {} }, { exempt }, "p")) {
      expect(JSON.stringify(object).length).toBeLessThan(32 * 1024);
    }
  });
});
