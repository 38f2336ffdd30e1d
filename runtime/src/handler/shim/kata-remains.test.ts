import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { removeKataRemains } from "./kata-remains.ts";

const dir = mkdtempSync(join(tmpdir(), "bh-kata-remains-"));
afterAll(() => rmSync(dir, { recursive: true }));

test("what a failed start leaves goes, and nothing that holds a file", () => {
  for (const name of ["failed/ro", "failed/rw", "used/ro", "used/rw"])
    mkdirSync(join(dir, name), { recursive: true });
  writeFileSync(join(dir, "used/rw/of-a-volume"), "");
  for (const id of ["failed", "used", "none"]) removeKataRemains(id, dir);
  expect(existsSync(join(dir, "failed"))).toBe(false);
  expect(existsSync(join(dir, "used/rw/of-a-volume"))).toBe(true);
});
