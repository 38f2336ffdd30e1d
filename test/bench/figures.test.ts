import { expect, test } from "vitest";
import { chartOf, meets, quantile, type Row, tableOf } from "./figures.ts";

const row = (changes: Partial<Row> = {}): Row => ({
  ...{ name: "a & b", unit: "ms", containerd: 100, bulkhead: 40 },
  ...changes,
});

test("a goal is a ratio at most, where more is better at least, and a limit our own figure's", () => {
  expect(meets(row())).toBeUndefined();
  expect(meets(row({ goal: 0.5 }))).toBe(true);
  expect(meets(row({ goal: 0.3 }))).toBe(false);
  expect(meets(row({ goal: 1.8, more: true }))).toBe(false);
  expect(meets(row({ goal: 1.8, more: true, bulkhead: 200 }))).toBe(true);
  expect(meets(row({ limit: 39 }))).toBe(false);
});

test("quantiles are samples", () => {
  expect(quantile([3, 1, 2], 0.5)).toBe(2);
  expect(quantile([3, 1, 2], 0.99)).toBe(3);
  expect(quantile([], 0.5)).toBeNaN();
});

test("the table has figures, ratio and goal; the chart is well formed, also for less than nothing", () => {
  expect(tableOf([row({ goal: 0.5 })])).toContain("| a & b | 100 ms | 40.0 ms | 0.40 | ≤ 0.5 ✓ |");
  const chart = chartOf([row({ bulkhead: -1 })], "title");
  expect(chart).toContain("a &amp; b");
  expect(chart).not.toContain('width="-');
});
