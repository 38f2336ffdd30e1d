import { setFlagsFromString } from "node:v8";
import { libc } from "./linux/libc.ts";

/* mallopt(3) */
const M_ARENA_MAX = -8;

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

/** Gives freed memory back to the kernel once nothing was done for a second: takes some milliseconds. */
export const trimWhenQuiet = (): void => {
  timer ??= setTimeout(() => {
    timer = undefined;
    libc.malloc_trim(0);
  }, QUIET_MS).unref();
  timer.refresh();
};
