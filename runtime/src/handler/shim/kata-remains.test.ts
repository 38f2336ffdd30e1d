import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { removeKataRemains } from "./kata-remains.ts";

const dir = mkdtempSync(join(tmpdir(), "bh-kata-remains-"));
afterAll(() => rmSync(dir, { recursive: true }));

test("what either shim leaves of a sandbox goes, and nothing of another one", () => {
  const own = "a".repeat(64);
  const left = (id: string) =>
    [
      `run/vc/sbs/${id}/persist.json`,
      `run/vc/firecracker/${id.slice(0, 32)}/root/vmlinux`,
      `run/kata/${id}/state.json`,
      `run/kata-containers/shared/sandboxes/${id}/mounts/x/rootfs/f`,
    ].map((path) => join(dir, path));
  const other = "b".repeat(64);
  for (const path of [...left(own), ...left(other)]) {
    mkdirSync(join(path, ".."), { recursive: true });
    writeFileSync(path, "");
  }
  removeKataRemains(own, dir);
  removeKataRemains("none", dir);
  expect(left(own).filter(existsSync)).toEqual([]);
  expect(existsSync(join(dir, "run/vc/sbs", own))).toBe(false);
  expect(left(other).filter(existsSync)).toEqual(left(other));
});

test("a place that something is mounted below is not touched", () => {
  const id = "c".repeat(64);
  const place = join(dir, "run/kata", id);
  mkdirSync(join(place, "deep"), { recursive: true });
  removeKataRemains(id, dir, [join(place, "deep")]);
  expect(existsSync(place)).toBe(true);
  removeKataRemains(id, dir, [`${place}d`]);
  expect(existsSync(place)).toBe(false);
});
