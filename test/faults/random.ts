/** Numbers that a seed determines: the same seed, the same run. */
export type Random = {
  /** An integer from `low` to `high`, both included. */
  int(low: number, high: number): number;
  /** True in `share` of all cases. */
  chance(share: number): boolean;
  pick<T>(values: readonly T[]): T;
};

/** mulberry32, a generator of 32 bits of state: small, fast, and the same everywhere. */
export const randomOf = (seed: number): Random => {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (low: number, high: number): number => low + Math.floor(next() * (high - low + 1));
  return { int, chance: (share) => next() < share, pick: (values) => values[int(0, values.length - 1)]! };
};
