import { create } from "@bufbuild/protobuf";
import {
  LinuxContainerSecurityContextSchema,
  SecurityProfile_ProfileType as Type,
} from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { apparmorOf, requireApparmor } from "./apparmor.ts";

const loaded = "k8s-deny-write (enforce)\n/usr/sbin/named (complain)\nwith space (kill)\n";

test.each([
  [
    "a local profile is its name",
    { apparmor: { profileType: Type.Localhost, localhostRef: "mine" } },
    "mine",
  ],
  [
    "a local profile may carry the prefix of older kubelets",
    { apparmor: { profileType: Type.Localhost, localhostRef: "localhost/mine" } },
    "mine",
  ],
  ["the older field counts alone", { apparmorProfile: "localhost/mine" }, "mine"],
  [
    "the newer field wins",
    { apparmor: { profileType: Type.Unconfined, localhostRef: "" }, apparmorProfile: "localhost/mine" },
    undefined,
  ],
  ["runtime/default is none", { apparmorProfile: "runtime/default" }, undefined],
  ["privileged runs without", { privileged: true, apparmorProfile: "localhost/mine" }, undefined],
] as const)("%s", (_, security, profile) => {
  expect(apparmorOf(create(LinuxContainerSecurityContextSchema, security))).toBe(profile);
});

test.each(["k8s-deny-write", "/usr/sbin/named", "with space"])("a loaded profile is taken: %s", (profile) => {
  expect(() => requireApparmor(profile, true, loaded)).not.toThrow();
});

test("a profile that is not loaded is refused by its name", () => {
  expect(() => requireApparmor("k8s-deny", true, loaded)).toThrow(
    'Cannot use AppArmor profile "k8s-deny": it is not loaded on this node',
  );
});

test("a profile on a node without AppArmor is refused, not left out", () => {
  expect(() => requireApparmor("mine", false, undefined)).toThrow("AppArmor is not enabled on this node");
});
