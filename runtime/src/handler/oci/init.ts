import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** An exec of a program that lies on a slow disk may take a while. */
const LONGEST_MS = 2_000;

/**
 * Waits until `pid` is the container's own program. `runc start` returns when its init was let go, some milliseconds
 * before the exec; a signal that meets the init itself, a Go program, ends it with exit code 2, which no program of
 * the container said.
 */
export const pastInit = async (pid: number, signal: AbortSignal): Promise<void> => {
  for (const end = performance.now() + LONGEST_MS; performance.now() < end && isInit(pid); )
    await sleep(2, undefined, { signal });
};

const isInit = (pid: number): boolean => {
  try {
    return readFileSync(`/proc/${pid}/comm`, "latin1").startsWith("runc:[");
  } catch {
    return false;
  }
};
