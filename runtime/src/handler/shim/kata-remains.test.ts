import { existsSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
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

test("the copy of a template that a sandbox's name leads to goes with it, and nothing else that a link names", () => {
  const id = "d".repeat(64);
  const copy = "/run/vc/vm/e622a9ca-ac1d-4aec-8e1d-e4e9baf7fc19";
  const link = (place: string, target: string): string => {
    mkdirSync(join(dir, place), { recursive: true });
    symlinkSync(target, join(dir, place, id));
    return join(dir, place, id);
  };
  for (const each of [join(copy, "shared"), "/run/vc/vm/other"])
    mkdirSync(join(dir, each), { recursive: true });
  const links = [
    link("run/vc/vm", copy),
    link("run/kata-containers/shared/sandboxes", join(copy, "shared")),
    link("run/kata", "/run/vc/vm/other"),
  ];
  removeKataRemains(id, dir);
  expect(links.filter((path) => lstatSync(path, { throwIfNoEntry: false }))).toEqual([]);
  expect(existsSync(join(dir, copy))).toBe(false);
  expect(existsSync(join(dir, "/run/vc/vm/other"))).toBe(true);
});
