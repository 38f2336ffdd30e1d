import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { differencesOf, exceptionsOf } from "./critest.ts";

const list = `
| part of the spec's name | how many | handlers | why |
|---|---|---|---|
| \`AppArmor\` | 2 skipped | runc, gvisor | no AppArmor |
| \`HostIpc is true\` | 1 failed | gvisor | its own |
`;
const apparmor = ["a", "b"].map((name) => ({ name: `AppArmor ${name}`, state: "skipped", message: "" }));
const hostIpc = { name: "should support HostIpc is true", state: "failed", message: "not there" };
const other = { name: "Image Manager", state: "passed", message: "" };

test("exceptionsOf() reads the lines of a handler", () => {
  expect(exceptionsOf(list, "runc")).toEqual([{ part: "AppArmor", count: 2, state: "skipped" }]);
  expect(exceptionsOf(list, "gvisor")).toHaveLength(2);
  expect(exceptionsOf(list, "shim")).toEqual([]);
});

test("exceptionsOf() finds lines for every handler in SPECIFICATION.md", async () => {
  const text = await readFile(join(import.meta.dirname, "../../SPECIFICATION.md"), "utf8");
  for (const handler of ["runc", "gvisor", "shim"] as const)
    expect(exceptionsOf(text, handler).map(({ part }) => part)).toContain("AppArmor");
});

test("differencesOf() finds nothing where run and list say the same", () => {
  expect(differencesOf([...apparmor, hostIpc, other], exceptionsOf(list, "gvisor"))).toEqual([]);
});

test("differencesOf() names a spec that fails or is skipped and is not listed so", () => {
  expect(differencesOf([...apparmor, hostIpc], exceptionsOf(list, "runc"))).toEqual([
    "failed, but not listed: should support HostIpc is true: not there",
  ]);
  const skipped = { ...other, state: "skipped" };
  expect(differencesOf([...apparmor, skipped], exceptionsOf(list, "runc"))).toEqual([
    "skipped, but not listed: Image Manager: ",
  ]);
});

test("differencesOf() names a listed spec that passes, or is not there any more", () => {
  const passes = { ...hostIpc, state: "passed" };
  expect(differencesOf([...apparmor, passes], exceptionsOf(list, "gvisor"))).toEqual([
    "listed as 1 failed, but it was 0: HostIpc is true",
  ]);
  expect(differencesOf([], exceptionsOf(list, "runc"))).toEqual([
    "listed as 2 skipped, but it was 0: AppArmor",
  ]);
});
