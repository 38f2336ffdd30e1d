import { create } from "@bufbuild/protobuf";
import { SELinuxOptionSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { describe, expect, test } from "vitest";
import {
  freeLevel,
  parseContexts,
  policyOf,
  readOnlyLabel,
  requireRelabelable,
  selinuxLabels,
  selinuxOptions,
  typeOf,
} from "./selinux.ts";

const option = (parts: object) => create(SELinuxOptionSchema, parts);
const contexts = parseContexts(
  'process = "system_u:system_r:container_t:s0"\n# file = "no"\nfile="system_u:object_r:container_file_t:s0-s0:c0.c1023"\n',
);
const level = "s0:c1,c2";

test.each([
  [
    "nothing asked: the policy's, at the pod's level",
    {},
    "system_u:system_r:container_t:s0:c1,c2",
    "system_u:object_r:container_file_t:s0:c1,c2",
  ],
  [
    "a type alone stays at the pod's level",
    { type: "spc_t" },
    "system_u:system_r:spc_t:s0:c1,c2",
    "system_u:object_r:container_file_t:s0:c1,c2",
  ],
  [
    "a level is the files' too",
    { level: "s0:c7,c8" },
    "system_u:system_r:container_t:s0:c7,c8",
    "system_u:object_r:container_file_t:s0:c7,c8",
  ],
  [
    "so is a user, but not a role",
    { user: "u", role: "r" },
    "u:r:container_t:s0:c1,c2",
    "u:object_r:container_file_t:s0:c1,c2",
  ],
] as const)("labels, %s", (_, asked, process, mount) => {
  expect(selinuxLabels(option(asked), { contexts, level })).toEqual({ process, mount });
});

test("a policy without contexts for containers labels only who asks", () => {
  expect(selinuxLabels(undefined, { contexts: undefined, level })).toBeUndefined();
  expect(selinuxLabels(option({}), { contexts: undefined, level })).toBeUndefined();
  expect(selinuxLabels(option({ type: "spc_t" }), { contexts: undefined, level })?.process).toBe(
    "system_u:system_r:spc_t:s0:c1,c2",
  );
});

test.each([
  ["type", { type: "a b" }],
  ["user", { user: 'u",x="' }],
  ["level", { level: "s0,c1,c2" }],
  ["level", { level: 's0:c1,c2"' }],
])("a bad %s is refused", (name, asked) => {
  expect(() => selinuxLabels(option(asked), { contexts, level })).toThrow(`Cannot use SELinux ${name}`);
});

test("the container's options come before its pod's", () => {
  const [own, pods] = [option({ type: "own_t" }), option({ type: "pod_t" })];
  expect(selinuxOptions(own, pods)).toBe(own);
  expect(selinuxOptions(option({}), pods)).toBe(pods);
  expect(selinuxOptions(undefined, undefined)).toBeUndefined();
});

describe("freeLevel()", () => {
  const from = (numbers: number[]) => () => numbers.shift() ?? 0;

  test("is two categories in order, which no pod has yet", () => {
    expect(freeLevel(new Set(), from([9, 4]))).toBe("s0:c4,c9");
    expect(freeLevel(new Set(["s0:c4,c9"]), from([9, 4, 5, 5, 4, 9, 3, 1]))).toBe("s0:c1,c3");
  });

  test("gives up where there is none", () => {
    expect(() => freeLevel(new Set(), () => 0)).toThrow("free pair of SELinux categories");
  });
});

test("lxc_contexts without one of the two, or with a broken one, is none", () => {
  expect(parseContexts("")).toBeUndefined();
  expect(parseContexts('process = "system_u:system_r:container_t:s0"')).toBeUndefined();
  expect(parseContexts('process = "system_u:system_r"\nfile = "a:b:c:s0"')).toBeUndefined();
});

test("what containers read has the policy's own label, by the type of which it is known again", () => {
  const both = 'process = "u:r:p:s0"\nfile = "u:r:f:s0"\n';
  expect(readOnlyLabel(parseContexts(`${both}ro_file="system_u:object_r:container_ro_file_t:s0"\n`))).toBe(
    "system_u:object_r:container_ro_file_t:s0",
  );
  expect(readOnlyLabel(parseContexts(both))).toBeUndefined();
  expect(readOnlyLabel(parseContexts(`${both}ro_file="a:b:c"\n`))).toBeUndefined();
  expect(readOnlyLabel(undefined)).toBeUndefined();
  expect(typeOf("unconfined_u:object_r:container_ro_file_t:s0\0")).toBe("container_ro_file_t");
  expect(typeOf("?")).toBeUndefined();
});

test("the policy is the one of /etc/selinux/config", () => {
  expect(policyOf("SELINUX=permissive\nSELINUXTYPE=minimum\n")).toBe("minimum");
  expect(policyOf("#SELINUXTYPE=minimum\n")).toBe("targeted");
  expect(policyOf("SELINUXTYPE=../..\n")).toBe("targeted");
});

test.each(["/", "/usr", "/etc", "/home", "/var/lib", "/var/lib/kubelet"])("%s is not relabelled", (path) => {
  expect(() => requireRelabelable(path)).toThrow(`Cannot relabel "${path}"`);
});

test("a volume is relabelled", () => {
  expect(() => requireRelabelable("/var/lib/kubelet/pods/x/volumes/kubernetes.io~empty-dir/v")).not.toThrow();
});
