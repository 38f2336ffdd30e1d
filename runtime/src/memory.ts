import { readFileSync, readlinkSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { libc } from "./linux/libc.ts";
import { programPages, type Range } from "./program-pages.ts";

/* mallopt(3), madvise(2) */
const M_ARENA_MAX = -8;
const MADV_DONTNEED = 4;

/**
 * Keeps the daemon small; first of all imports, as it counts for what comes after it. Set from inside, so that a
 * unit, a shell and a test all get the same.
 */

// Young space stays at its first size (1 MiB) instead of growing to 32 MiB: what an RPC leaves is small, and node
// has no other way to set this once it runs.
setFlagsFromString("--semi-space-growth-factor=1");
// One arena for all threads: glibc's eight a core each keep what they once had. Ours rarely allocate at once.
libc.mallopt(M_ARENA_MAX, 1);

const QUIET_MS = 1_000;
let timer: NodeJS.Timeout | undefined;

/**
 * Gives back to the kernel, once nothing was done for a second, what was freed (takes some milliseconds) and the pages of
 * node's own program: two thirds of those 57 MB serve the start alone. What is needed again comes back from the page
 * cache, 16 pages at a touch, within a millisecond.
 */
export const trimWhenQuiet = (): void => {
  timer ??= setTimeout(() => {
    timer = undefined;
    libc.malloc_trim(0);
    program ??= ownProgram();
    for (const { start, length } of program) libc.madvise(start, length, MADV_DONTNEED);
  }, QUIET_MS).unref();
  timer.refresh();
};

let program: Range[] | undefined;

const ownProgram = (): Range[] => {
  try {
    return programPages(readFileSync("/proc/self/smaps", "utf8"), readlinkSync("/proc/self/exe"));
  } catch {
    // Without /proc as we know it the pages stay.
    return [];
  }
};
