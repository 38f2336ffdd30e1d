import { execFileSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readBounded } from "./bounded-file.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-bounded-"));
});
afterAll(() => rm(dir, { recursive: true }));

test("readBounded() takes a file of as many bytes as are allowed, and none of one more", async () => {
  const path = join(dir, "file");
  await writeFile(path, "ä".repeat(50));
  expect(await readBounded(path, 100)).toBe("ä".repeat(50));
  await expect(readBounded(path, 99)).rejects.toMatchObject({
    code: "failed-precondition",
    message: "larger than 99 bytes",
  });
});

test("readBounded() refuses what is no file, waits for no writer, and believes no size", async () => {
  const fifo = join(dir, "fifo");
  execFileSync("mkfifo", [fifo]);
  for (const path of [fifo, "/dev/zero", dir])
    await expect(readBounded(path, 100)).rejects.toThrow("not a regular file");
  // Its size is 0.
  await expect(readBounded("/proc/self/status", 100)).rejects.toThrow("larger than 100 bytes");
  await expect(readBounded(join(dir, "none"), 100)).rejects.toMatchObject({ code: "ENOENT" });
});
