import { performance } from "node:perf_hooks";

/** How long changes are gathered before a profile is planned, by what planning was seen to cost. */
export type Pace = {
  /** Does a part of a plan's work, and remembers how long it took. */
  timed<T>(work: () => T): T;
  /**
   * Milliseconds that what came is let lie while so many profiles wait to be planned: planning takes a fifth of the
   * time at most, and no more than ten statuses are written a second.
   */
  delayMs(waiting: number): number;
};

/** A plan's parts: its facts, then what follows of them. */
const parts = 2;

export const createPace = (now: () => number = () => performance.now()): Pace => {
  /** Of one part, the last sixteen or so. */
  let mean = 0;
  return {
    timed: (work) => {
      const started = now();
      try {
        return work();
      } finally {
        mean += (now() - started - mean) / 16;
      }
    },
    delayMs: (waiting) => Math.min(30_000, waiting * Math.max(100, 4 * parts * mean)),
  };
};
