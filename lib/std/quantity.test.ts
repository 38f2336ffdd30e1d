import { expect, test } from "vitest";
import { parseQuantity } from "./quantity.ts";

test.each([
  ["0", 0],
  ["250m", 0.25],
  ["1.5M", 1_500_000],
  ["64Ki", 65_536],
  ["+2e6", 2_000_000],
  ["1Ti", 2 ** 40],
  ["", undefined],
  ["10 M", undefined],
  ["10mi", undefined],
  ["-1", undefined],
  ["1constructor", undefined],
])("parseQuantity(%j)", (text, expected) => {
  expect(parseQuantity(text)).toBe(expected);
});
