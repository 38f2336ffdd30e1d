import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import { defaultApparmor, defaultApparmorProfile } from "../spec/apparmor-default.ts";

/* This kernel has no AppArmor: Debian's parser compiles the profile for the features of one that has, and loads nothing. */

const abi = "abi/3.0";
const parse = (text: string): string =>
  execFileSync(
    "apparmor_parser",
    ["--skip-kernel-load", "--skip-cache", "--features-file", join("/etc/apparmor.d", abi), "--names"],
    { input: text, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"], timeout: 30_000 },
  );

test.each([abi, undefined])("apparmor_parser compiles the default profile, abi %s", (pinned) => {
  const text = defaultApparmorProfile(pinned);
  expect(parse(text).trim()).toBe(defaultApparmor);
  // It looks at what it is given.
  expect(() => parse(text.replace("deny mount", "deny mont"))).toThrow("syntax error");
});
