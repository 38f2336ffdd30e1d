/** Exponential delays with jitter. `next()` gives the delay before the next attempt, `reset()` starts over. */
export type Backoff = { next(): number; reset(): void };

/** Delays from `base` ms doubling to `max` ms, each lengthened by up to `jitter` of itself. */
export const backoff = (options: {
  base: number;
  max: number;
  jitter: number;
  random: () => number;
}): Backoff => {
  let exponent = 0;
  return {
    next: () => {
      const delay = Math.min(options.base * 2 ** exponent, options.max);
      if (delay < options.max) exponent++;
      return delay * (1 + options.jitter * options.random());
    },
    reset: () => {
      exponent = 0;
    },
  };
};
