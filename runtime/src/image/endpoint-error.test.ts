import { expect, test } from "vitest";
import { pauseBefore, retryAfter } from "./endpoint-error.ts";

test("pauseBefore() grows, does as the registry wants, and never takes more than 30 seconds", () => {
  expect(pauseBefore(1)).toBeGreaterThanOrEqual(150);
  expect(pauseBefore(1)).toBeLessThanOrEqual(250);
  expect(pauseBefore(3)).toBeGreaterThanOrEqual(600);
  expect(pauseBefore(1, 5000)).toBe(5000);
  expect(pauseBefore(1, 30_001)).toBe(30_000);
  expect(pauseBefore(1, retryAfter("9".repeat(300)))).toBe(30_000);
  expect(pauseBefore(60)).toBe(30_000);
});

test("retryAfter() reads seconds and dates, and nothing else", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  expect(retryAfter("2", now)).toBe(2000);
  expect(retryAfter("Thu, 01 Jan 2026 00:00:05 GMT", now)).toBe(5000);
  expect(retryAfter("Thu, 01 Jan 2015 00:00:05 GMT", now)).toBe(0);
  expect(retryAfter("soon", now)).toBeUndefined();
  expect(retryAfter(undefined, now)).toBeUndefined();
});
