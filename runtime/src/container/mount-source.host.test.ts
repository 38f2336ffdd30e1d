import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { hungDisk } from "./hung-disk.ts";
import { createSourceFinder } from "./mount-source.ts";

let dir: string;
let program: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "bh-hung-"));
  program = join(dir, "reaper");
  const source = join(import.meta.dirname, "../monitor/exec/reaper.c");
  execFileSync("cc", ["-Os", "-static", "-o", program, source]);
});
afterAll(() => rm(dir, { recursive: true }));

// Of libuv's threads there are four here, and the test needs some itself.
const find = createSourceFinder(2);
const source = (path: string, ms = 120_000) => find(path, program, AbortSignal.timeout(ms));
const wrong = async (path: string, ms?: number): Promise<string> => {
  const found = await source(path, ms).catch((error) => error.message);
  return String(found);
};

/** What is found where a disk answers. */
const findsAll = async (name: string): Promise<void> => {
  const [file, made, link] = [
    join(dir, `${name}-file`),
    join(dir, name, "made/here"),
    join(dir, `${name}-link`),
  ];
  await writeFile(file, "");
  expect(await source(made)).toBe(made);
  await symlink(made, link);
  expect(await source(link)).toBe(made);
  expect(await source(file)).toBe(file);
  const below = join(file, "below");
  expect(await wrong(below)).toMatch(new RegExp(`^Cannot mount "${below}": .*not a directory`, "i"));
};

test("a disk that does not answer holds its own caller up until its signal, retries take no thread, and others go on", async () => {
  await using _ = await hungDisk(join(dir, "disk"));
  const [path, link] = [join(dir, "disk/volume"), join(dir, "link")];
  await symlink(path, link);
  // More retries than libuv has threads.
  const tries = Array.from({ length: 80 }, () => wrong(path, 300));
  tries.push(wrong(link, 300));
  expect([...new Set(await Promise.all(tries))]).toEqual(
    [path, link].map((at) => `Cannot mount "${at}": the file system that it is on does not answer`),
  );
  await findsAll("one");
});

test("more sources that hang at once than there are threads hold nobody else up", async () => {
  const paths = Array.from({ length: 120 }, (_, n) => join(dir, "many", `volume-${n}`));
  let said: Promise<string>[];
  {
    await using _ = await hungDisk(join(dir, "many"));
    said = paths.map((path) => wrong(path, 120_000));
    const hung = (path: string) => `Cannot mount "${path}": the file system that it is on does not answer`;
    expect(await Promise.all(paths.map((path) => wrong(path, 500)))).toEqual(paths.map(hung));
    await findsAll("others");
    await mkdir(join(dir, "there"));
    expect(await Promise.all(Array.from({ length: 50 }, () => source(join(dir, "there"))))).toEqual(
      Array(50).fill(join(dir, "there")),
    );
  }
  // Now they fail, each in words, and nothing of them is left.
  for (const [n, message] of (await Promise.all(said)).entries())
    expect(message).toMatch(new RegExp(`^Cannot mount "${paths[n]}": .*not connected`, "i"));
});
