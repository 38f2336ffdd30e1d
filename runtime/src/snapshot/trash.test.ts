import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createTrash } from "./trash.ts";
import { removeTree } from "./tree.ts";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bh-trash-"));
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(root, { recursive: true });
});

const made = (name: string): string => {
  mkdirSync(join(root, name, "deep", "deeper"), { recursive: true });
  writeFileSync(join(root, name, "deep", "deeper", "file"), "");
  return join(root, name);
};
/** By a clock of its own: vi.waitFor would let the other one go on. */
const until = async (isSo: () => boolean): Promise<void> => {
  while (!isSo()) await new Promise(setImmediate);
};
const dir = () => join(root, "trash");

test("what cannot be removed is tried again, later each time, until it is gone", async () => {
  let fails = 3;
  const tries: string[] = [];
  using trash = await createTrash(dir(), async (path) => {
    tries.push(path);
    if (fails-- > 0) throw new Error("EMFILE");
    removeTree(path);
  });
  await trash.discard(made("tree"));
  expect(existsSync(join(root, "tree"))).toBe(false);
  for (const [after, many] of [
    [5_000, 1],
    [10_000, 2],
    [10_000, 2],
    [15_000, 3],
    [25_000, 3],
  ] as const) {
    await vi.advanceTimersByTimeAsync(after);
    await until(() => tries.length === many && vi.getTimerCount() === 1);
    expect(readdirSync(dir()).length).toBe(1);
  }
  await vi.advanceTimersByTimeAsync(20_000);
  await until(() => readdirSync(dir()).length === 0);
  expect(vi.getTimerCount()).toBe(0);
});

test("what cannot be hidden is tried again, too", async () => {
  using trash = await createTrash(dir(), async (path) => removeTree(path));
  const parent = join(root, "parent");
  writeFileSync(parent, "not a directory, for a while");
  await expect(trash.hide(join(parent, "tree"))).rejects.toThrow("ENOTDIR");
  trash.discardLater(join(parent, "tree"));
  await until(() => vi.getTimerCount() === 1);
  rmSync(parent);
  made("parent/tree");
  await vi.advanceTimersByTimeAsync(11_000);
  await until(() => readdirSync(parent).length === 0 && readdirSync(dir()).length === 0);
});

test("what was cut off in the middle of a removal is removed, with what it had moved aside", async () => {
  using trash = await createTrash(dir(), async (path) => removeTree(path));
  made("trash/1-2-3");
  made("trash/1-2-3.0");
  made("trash/1-2-3.0.0");
  await trash.empty();
  expect(readdirSync(dir())).toEqual([]);
  expect(vi.getTimerCount()).toBe(0);
});

test("closed, it tries nothing again", async () => {
  const trash = await createTrash(dir(), () => Promise.reject(new Error("EROFS")));
  await trash.discard(made("tree"));
  expect(vi.getTimerCount()).toBe(1);
  trash[Symbol.dispose]();
  await trash.discard(made("other"));
  expect(vi.getTimerCount()).toBe(0);
});
