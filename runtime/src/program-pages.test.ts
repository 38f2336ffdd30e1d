import { readFileSync, readlinkSync } from "node:fs";
import { expect, test } from "vitest";
import { programPages } from "./program-pages.ts";

const mapping = (range: string, flags: string, path: string, anonymous: number) =>
  [
    `${range} ${flags} 00000000 fe:00 1234                 ${path}`,
    "Size:                  8 kB",
    "Rss:                   8 kB",
    `Anonymous:         ${anonymous} kB`,
    "LazyFree:              0 kB",
  ].join("\n");

test("Only read-only mappings of the program without a copied page are told", () => {
  const smaps = [
    mapping("00400000-00402000", "r--p", "/bin/node", 0),
    mapping("00402000-00405000", "r-xp", "/bin/node", 0),
    mapping("00405000-00406000", "r--p", "/bin/node", 4),
    mapping("00406000-00407000", "rw-p", "/bin/node", 0),
    mapping("00407000-00408000", "r--s", "/bin/node", 0),
    mapping("7f0000000000-7f0000001000", "r-xp", "/lib/libc.so.6", 0),
    mapping("7f0000001000-7f0000002000", "r-xp", "/bin/node (deleted)", 0),
    mapping("7f0000002000-7f0000003000", "r--p", "", 0),
  ].join("\n");
  expect(programPages(smaps, "/bin/node")).toEqual([
    { start: 0x400000, length: 0x2000 },
    { start: 0x402000, length: 0x3000 },
  ]);
});

test("This very process has such pages, most of its program", () => {
  const ranges = programPages(readFileSync("/proc/self/smaps", "utf8"), readlinkSync("/proc/self/exe"));
  expect(ranges.reduce((sum, { length }) => sum + length, 0)).toBeGreaterThan(20 << 20);
});
