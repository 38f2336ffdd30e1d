import { expect, test } from "vitest";
import { createPace } from "./pace.ts";

test("Plans that cost more are made less often: a fifth of the time is theirs", () => {
  let [now, cost] = [0, 0.1];
  const pace = createPace(() => now);
  const plan = () => {
    // Its facts, then what follows.
    for (let part = 0; part < 2; part++)
      pace.timed(() => {
        now += cost;
      });
  };
  for (let round = 0; round < 50; round++) plan();
  expect([pace.delayMs(1), pace.delayMs(20)]).toEqual([100, 2000]);
  cost = 25;
  for (let round = 0; round < 100; round++) plan();
  // 20 profiles at 50 ms each are a second's work, every five seconds.
  expect(pace.delayMs(20)).toBeGreaterThan(3900);
  expect(pace.delayMs(20)).toBeLessThan(4100);
  expect(pace.delayMs(100_000)).toBe(30_000);
});
