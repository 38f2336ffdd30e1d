import { EventEmitter } from "node:events";
import { type FSWatcher, mkdtempSync, rmSync, watch, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { watchFolder } from "./watch-folder.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-watch-"));
});
afterEach(() => rmSync(dir, { recursive: true }));

test("tells names of what changes", async () => {
  const names: unknown[] = [];
  using _ = watchFolder(dir, (name) => names.push(name), { lookMs: 60_000 });
  writeFileSync(join(dir, "a"), "");
  await vi.waitFor(() => expect(names).toContain("a"), 20_000);
});

/* The watch is a fake: a kernel that has no inotify left, for a while. */
test("without inotify everything is looked at, until there is some again", async () => {
  const errors: unknown[] = [];
  const seen: unknown[] = [];
  let tries = 0;
  const scarce = ((...args: Parameters<typeof watch>) => {
    if (++tries < 3) throw Object.assign(new Error("too many open files"), { code: "EMFILE" });
    return watch(...args);
  }) as typeof watch;
  using _ = watchFolder(dir, (name) => seen.push(name), {
    lookMs: 1,
    failed: (error) => errors.push(error),
    watch: scarce,
  });
  await vi.waitFor(() => expect(tries).toBe(3), 20_000);
  expect(errors).toHaveLength(1);
  expect(seen.length).toBeGreaterThanOrEqual(80);
  expect(new Set(seen)).toEqual(new Set([undefined]));
  await new Promise((resolve) => setTimeout(resolve, 20));
  const looks = seen.length;
  writeFileSync(join(dir, "a"), "");
  await vi.waitFor(() => expect(seen).toContain("a"), 20_000);
  expect(seen.filter((name) => name === undefined).length).toBeLessThanOrEqual(looks + 1);
});

test("a watch that breaks is followed by looks, and ends with its user", async () => {
  const broken = Object.assign(new EventEmitter(), { close: vi.fn() });
  const seen: unknown[] = [];
  const folder = watchFolder(dir, (name) => seen.push(name), {
    lookMs: 1,
    watch: (() => broken as unknown as FSWatcher) as unknown as typeof watch,
  });
  broken.emit("error", new Error("gone"));
  await vi.waitFor(() => expect(seen.length).toBeGreaterThan(2), 20_000);
  folder[Symbol.dispose]();
  await new Promise((resolve) => setTimeout(resolve, 10));
  const { length } = seen;
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(seen).toHaveLength(length);
});
