import { create } from "@bufbuild/protobuf";
import {
  LinuxContainerSecurityContextSchema,
  SecurityProfile_ProfileType as Type,
} from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { apparmorChoice, requireApparmor } from "./apparmor.ts";
import { defaultApparmorProfile } from "./apparmor-default.ts";

const loaded = "k8s-deny-write (enforce)\n/usr/sbin/named (complain)\nwith space (kill)\n";

const profile = (name: string) => ({ use: "profile", name });

test.each([
  [
    "a local profile is its name",
    { apparmor: { profileType: Type.Localhost, localhostRef: "mine" } },
    profile("mine"),
  ],
  [
    "a local profile may carry the prefix of older kubelets",
    { apparmor: { profileType: Type.Localhost, localhostRef: "localhost/mine" } },
    profile("mine"),
  ],
  ["the older field counts alone", { apparmorProfile: "localhost/mine" }, profile("mine")],
  [
    "the newer field wins",
    { apparmor: { profileType: Type.Unconfined, localhostRef: "" }, apparmorProfile: "localhost/mine" },
    { use: "none" },
  ],
  ["RuntimeDefault is ours", { apparmor: { profileType: Type.RuntimeDefault } }, { use: "default" }],
  ["runtime/default is ours", { apparmorProfile: "runtime/default" }, { use: "default" }],
  ["nothing said is ours", {}, { use: "default" }],
  ["unconfined is none", { apparmorProfile: "unconfined" }, { use: "none" }],
  ["privileged runs without", { privileged: true, apparmorProfile: "localhost/mine" }, { use: "none" }],
] as const)("%s", (_, security, choice) => {
  expect(apparmorChoice(create(LinuxContainerSecurityContextSchema, security))).toEqual(choice);
});

test("a local profile without a name is refused", () => {
  const security = create(LinuxContainerSecurityContextSchema, { apparmor: { profileType: Type.Localhost } });
  expect(() => apparmorChoice(security)).toThrow("without its name");
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

test("the default profile is what its file shows", async () => {
  await expect(defaultApparmorProfile("abi/3.0")).toMatchFileSnapshot("testdata/bulkhead-default.apparmor");
});
