import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readNamedFiles } from "./settings.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "bulkhead-settings-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

test("files are those that the kubelet shows of a ConfigMap, by their names", async () => {
  mkdirSync(join(directory, "..2026"));
  writeFileSync(join(directory, "..2026/prod.pub"), "key\n");
  symlinkSync("..2026", join(directory, "..data"));
  symlinkSync("..data/prod.pub", join(directory, "prod.pub"));
  expect(await readNamedFiles(directory)).toEqual({ "/etc/bulkhead/files/prod.pub": "key\n" });
  expect(await readNamedFiles("")).toEqual({});
});

test("what is no text, or too large, is refused by its name", async () => {
  writeFileSync(join(directory, "a.der"), Buffer.from([0xff, 0xfe]));
  await expect(readNamedFiles(directory)).rejects.toThrow("a.der is no text");
  writeFileSync(join(directory, "a.der"), "x".repeat((1 << 20) + 1));
  await expect(readNamedFiles(directory)).rejects.toThrow("a.der is larger than");
});
