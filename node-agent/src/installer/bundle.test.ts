import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { BundleCheck, type ListedFile } from "./bundle.ts";

let directory: string;
let files: ListedFile[];
const never = new AbortController().signal;
const bytes = Buffer.alloc(8 << 20, "x");

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "bh-check-"));
  await writeFile(join(directory, "file"), bytes, { mode: 0o644 });
  await symlink("file", join(directory, "link"));
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  files = [
    { kind: "file", path: "file", sha256, size: bytes.length, mode: 0o644 },
    { kind: "link", path: "link", target: "file" },
  ];
});
afterAll(() => rm(directory, { recursive: true }));

/** Bytes that this process read meanwhile, from the kernel's own count. */
const readBy = async (check: BundleCheck): Promise<number> => {
  const count = async () => Number(/^rchar: ([0-9]+)$/m.exec(await readFile("/proc/self/io", "utf8"))?.[1]);
  const before = await count();
  expect(await check.drifted({ files }, directory, never)).toEqual([]);
  return (await count()) - before;
};

test("a file is hashed once, and again when so much time has passed, touched or not", async () => {
  const often = new BundleCheck(0);
  for (let n = 0; n < 2; n++) expect(await readBy(often)).toBeGreaterThan(bytes.length);
  const seldom = new BundleCheck(60_000);
  expect(await readBy(seldom)).toBeGreaterThan(bytes.length);
  expect(await readBy(seldom)).toBeLessThan(bytes.length);
  seldom.forget(directory);
  expect(await readBy(seldom)).toBeGreaterThan(bytes.length);
});

test("a file and a link that are others are found", async () => {
  await rm(join(directory, "link"));
  await symlink("/etc/passwd", join(directory, "link"));
  await writeFile(join(directory, "file"), "y");
  expect(await new BundleCheck().drifted({ files }, directory, never)).toEqual(["file", "link"]);
});
