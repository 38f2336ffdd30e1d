import { afterEach, expect, test, vi } from "vitest";
import { wallClock } from "./wall-clock.ts";

afterEach(() => {
  vi.useRealTimers();
});

test("is the wall clock, finer, and goes with it wherever it is set", () => {
  const near = (): number => Math.abs(wallClock() - Date.now());
  expect(near()).toBeLessThan(5);
  expect(new Set(Array.from({ length: 100 }, wallClock)).size).toBeGreaterThan(2);
  for (const hours of [-26, 0.01, 5000]) {
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + hours * 3_600_000, shouldAdvanceTime: true });
    expect(near()).toBeLessThan(5);
    vi.useRealTimers();
    expect(near()).toBeLessThan(5);
  }
});
