import fc from "fast-check";
import { expect, test } from "vitest";
import { backoff } from "./backoff.ts";

test("Delays double to the maximum and start over after reset()", () => {
  const delays = backoff({ base: 100, max: 1000, jitter: 0, random: () => 0 });
  expect([1, 2, 3, 4, 5, 6].map(() => delays.next())).toEqual([100, 200, 400, 800, 1000, 1000]);
  delays.reset();
  expect(delays.next()).toBe(100);
});

test("Jitter lengthens a delay by at most its share", () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.nat(2000), (random, steps) => {
      const delays = backoff({ base: 1, max: 60_000, jitter: 0.5, random: () => random });
      let delay = 0;
      for (let step = 0; step <= steps; step++) delay = delays.next();
      const bare = Math.min(2 ** steps, 60_000);
      expect(delay).toBeGreaterThanOrEqual(bare);
      expect(delay).toBeLessThanOrEqual(bare * 1.5);
    }),
  );
});
