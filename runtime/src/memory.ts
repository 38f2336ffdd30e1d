import { readFileSync, readlinkSync } from "node:fs";
import { totalmem } from "node:os";
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

// A call of the kernel's that hangs, as on a dead network disk, takes one of libuv's threads for as long. It makes all
// of them at the first call, 8 KiB each.
process.env.UV_THREADPOOL_SIZE ??= "64";

const LOOK_MS = 1_000;
const GIB = 2 ** 30;

/** A quarter of the node's memory, from 1 to 4 GiB: ten times what the daemon has for hundreds of pods. */
const memoryMax = Math.min(4 * GIB, Math.max(GIB, totalmem() / 4));

/**
 * Ends the daemon by SIGKILL, which loses nothing, before its memory is what pods are killed for: as what serves them
 * it is the last that the kernel would choose. Not by a MemoryMax of its unit: shims of running pods are in that
 * cgroup, too. `tell` must have written when it returns.
 */
export const endWhenTooLarge = (tell: (bytes: number, most: number) => void, most = memoryMax): void => {
  setInterval(() => {
    const bytes = process.memoryUsage.rss();
    if (bytes <= most) return;
    tell(bytes, most);
    process.kill(process.pid, "SIGKILL");
  }, LOOK_MS).unref();
};

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
