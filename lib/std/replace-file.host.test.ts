import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { replaceFile, replaceFileSync } from "./replace-file.ts";

test.each([
  ["replaceFile()", replaceFile],
  ["replaceFileSync()", async (...args: Parameters<typeof replaceFileSync>) => replaceFileSync(...args)],
])("%s leaves the old content, and nothing else, on a full disk", async (_, replace) => {
  const disk = mkdtempSync(join(tmpdir(), "bh-replace-"));
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "bh-replace", disk]);
  try {
    const path = join(disk, "record.json");
    await replace(path, "old");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    await expect(replace(path, "new".repeat(50_000))).rejects.toMatchObject({ code: "ENOSPC" });
    expect(readdirSync(disk)).toEqual(["record.json"]);
    expect(readFileSync(path, "utf8")).toBe("old");
    writeFileSync(join(disk, "record.json.new"), "half");
    await replace(path, "new");
    expect(readFileSync(path, "utf8")).toBe("new");
  } finally {
    execFileSync("umount", ["-l", disk]);
    rmSync(disk, { recursive: true });
  }
});
