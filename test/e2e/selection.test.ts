import { expect, test } from "vitest";
import { focusOf, selection, untagged } from "./selection.ts";

const found = (name: string, spec: string): boolean => new RegExp(focusOf(name)).test(spec);

test("a spec is found by its name without tags, and no other whose name it is a part of", () => {
  const name = "Sysctls should support sysctls";
  const spec = "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should support sysctls [Conformance]";
  expect(untagged(spec)).toBe(name);
  expect(found(name, `Kubernetes e2e suite ${spec}`)).toBe(true);
  expect(found(name, `${spec} with slashes as separator`)).toBe(false);
  expect(found(name, spec.replace("Sysctls", "More Sysctls"))).toBe(false);
});

test("characters that mean something in a regular expression stand for themselves", () => {
  expect(found("a (b) c.d", "[sig-storage] a (b) [Tag] c.d [Other]")).toBe(true);
  expect(found("a (b) c.d", "[sig-storage] a (b) cxd")).toBe(false);
});

test("no spec is selected twice", () => {
  expect(new Set(selection).size).toBe(selection.length);
});
