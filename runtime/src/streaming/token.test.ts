import { expect, test } from "vitest";
import { Tokens } from "./token.ts";

const minute = 60_000;

test("a request waits a minute for its client, and is handed out once", () => {
  let now = 0;
  const tokens = new Tokens<string>(() => now);
  const [early, late] = [tokens.issue("early"), tokens.issue("late")];
  now = minute - 1;
  expect(tokens.redeem(early)).toBe("early");
  expect(tokens.redeem(early)).toBeUndefined();
  now = minute;
  expect(tokens.redeem(late)).toBeUndefined();
  expect(tokens.redeem("")).toBeUndefined();
});

test("1000 requests wait; one more is refused until one is used or its minute is over", () => {
  let now = 0;
  const tokens = new Tokens<number>(() => now);
  const issued = Array.from({ length: 1000 }, (_, n) => tokens.issue(n));
  expect(new Set(issued).size).toBe(1000);
  expect(() => tokens.issue(1000)).toThrow("Cannot open another stream: 1000 wait for their client");
  expect(tokens.redeem(issued[500]!)).toBe(500);
  tokens.issue(1000);
  expect(() => tokens.issue(1001)).toThrow(expect.objectContaining({ code: "resource-exhausted" }));
  now = minute;
  for (let n = 0; n < 1000; n++) tokens.issue(n);
  expect(() => tokens.issue(1000)).toThrow();
});
