import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { defaultApparmorProfile } from "../spec/apparmor-default.ts";
import { loadDefaultApparmor } from "./apparmor.ts";

/* The parsers here are fakes: the kernel of the machine has no AppArmor to load into. */

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bulkhead-apparmor-"));
});
afterEach(() => rmSync(root, { recursive: true }));

const parser = (script: string): void => {
  mkdirSync(join(root, "sbin"));
  writeFileSync(join(root, "sbin/apparmor_parser"), `#!/bin/sh\n${script}\n`);
  chmodSync(join(root, "sbin/apparmor_parser"), 0o755);
};

test("the parser is given the profile, for the features that the node has a file of", async () => {
  parser(`echo "$@" > ${root}/args; cat > ${root}/got`);
  mkdirSync(join(root, "etc/apparmor.d/abi"), { recursive: true });
  writeFileSync(join(root, "etc/apparmor.d/abi/3.0"), "");
  expect(await loadDefaultApparmor(root)).toBeUndefined();
  expect(readFileSync(join(root, "args"), "utf8")).toBe("--replace --skip-cache\n");
  expect(readFileSync(join(root, "got"), "utf8")).toBe(defaultApparmorProfile("abi/3.0"));
});

test("without a parser it is told what to install", async () => {
  expect(await loadDefaultApparmor(root)).toBe("apparmor_parser is not installed (the package apparmor)");
});

test("a parser that fails, also before it has read, is told in its own words", async () => {
  parser("exec 0<&-; echo 'no securityfs' >&2; exit 3");
  expect(await loadDefaultApparmor(root)).toBe("apparmor_parser ended with 3: no securityfs");
});
