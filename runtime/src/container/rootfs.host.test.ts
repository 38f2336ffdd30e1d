import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readInRoot, resolveInRoot } from "./rootfs.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bulkhead-rootfs-"));
  mkdirSync(join(root, "etc"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

test("an absolute link stays inside the root", async () => {
  symlinkSync("/etc/shadow", join(root, "etc/passwd"));
  writeFileSync(join(root, "etc/shadow"), "inside");
  expect(await readInRoot(root, "/etc/passwd", 100)).toBe("inside");
});

test("no number of .. leads out", async () => {
  symlinkSync("../../../../../../etc", join(root, "up"));
  expect(await resolveInRoot(root, "/up/../../../../x")).toBe(join(root, "x"));
});

test("links in a circle are refused", async () => {
  symlinkSync("b", join(root, "a"));
  symlinkSync("a", join(root, "b"));
  await expect(readInRoot(root, "/a", 100)).rejects.toThrow("too many symbolic links");
});

test("a file above the limit is refused, one that is absent is empty", async () => {
  writeFileSync(join(root, "etc/group"), "x".repeat(101));
  await expect(readInRoot(root, "/etc/group", 100)).rejects.toThrow("larger than 100 bytes");
  expect(await readInRoot(root, "/etc/none", 100)).toBe("");
});

test("a FIFO in place of the file neither blocks nor reads", async () => {
  execFileSync("mkfifo", [join(root, "etc/passwd")]);
  expect(await readInRoot(root, "/etc/passwd", 100)).toBe("");
});
