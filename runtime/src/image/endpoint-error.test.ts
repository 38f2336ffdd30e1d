import { expect, test } from "vitest";
import { retryAfter } from "./endpoint-error.ts";

test("retryAfter() reads seconds and dates, and nothing else", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  expect(retryAfter("2", now)).toBe(2000);
  expect(retryAfter("Thu, 01 Jan 2026 00:00:05 GMT", now)).toBe(5000);
  expect(retryAfter("Thu, 01 Jan 2015 00:00:05 GMT", now)).toBe(0);
  expect(retryAfter("soon", now)).toBeUndefined();
  expect(retryAfter(undefined, now)).toBeUndefined();
});
