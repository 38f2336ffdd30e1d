import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { blockedMount } from "./mount-targets.ts";

let scratch: string;
let root: string;
beforeEach(() => {
  scratch = mkdtempSync(join(tmpdir(), "bulkhead-targets-"));
  root = join(scratch, "root");
  mkdirSync(join(root, "etc"), { recursive: true });
  writeFileSync(join(root, "etc/passwd"), "");
  mkdirSync(join(scratch, "dir"));
  writeFileSync(join(scratch, "file"), "");
});
afterEach(() => rmSync(scratch, { recursive: true }));

const blocked = (containerPath: string, source: "dir" | "file" = "dir", ...others: string[]) =>
  blockedMount(root, [
    { hostPath: join(scratch, source), containerPath },
    ...others.map((path) => ({ hostPath: join(scratch, "dir"), containerPath: path })),
  ]);

test("a place below a file is named with the file", async () => {
  expect(await blocked("/etc/passwd/below")).toBe(
    `Cannot mount "${scratch}/dir" at "/etc/passwd/below": "/etc/passwd" is not a directory`,
  );
});

test("a directory on a file and a file on a directory are told apart", async () => {
  expect(await blocked("/etc/passwd")).toMatch(/a directory cannot be mounted on a file/);
  expect(await blocked("/etc", "file")).toMatch(/a file cannot be mounted on a directory/);
});

test("a link of the image is followed inside the root", async () => {
  symlinkSync("/etc/passwd", join(root, "data"));
  expect(await blocked("/data/below")).toMatch(/"\/data" is not a directory/);
});

test.each([
  ["a place that is not there yet", "/new/deep", "dir", []],
  ["a directory on a directory", "/etc", "dir", []],
  ["a file on a file", "/etc/passwd", "file", []],
  ["a place below another mount", "/etc/passwd/below", "dir", ["/etc"]],
] as const)("%s can be mounted", async (_, place, source, others) => {
  expect(await blocked(place, source, ...others)).toBeUndefined();
});
