import { describe, expect, test } from "vitest";
import { canonicalJson, sameJson } from "./canonical-json.ts";

const parsed = (text: string): unknown => JSON.parse(text);

describe("sameJson", () => {
  const values: unknown[] = [
    ...[undefined, null, 0, 1, "", "1", true, false, [], {}],
    ...[[undefined], [null], [1, 2], [2, 1], { a: 1 }, { a: 1, b: undefined }, { b: 1 }, { a: null }],
    ...[{ a: { b: [1, { c: 2 }] } }, { a: { b: [1, { c: 3 }] } }, { x: 1, y: 2 }, { y: 2, x: 1 }],
    ...[{ 0: 1, 1: 2 }, { length: 0 }, { toString: 1 }],
    ...[parsed('{"__proto__":{}}'), parsed('{"__proto__":{"a":1}}'), parsed('{"constructor":{}}')],
  ];

  test("is what the texts of both say, whatever the order of the keys", () => {
    for (const one of values)
      for (const other of values)
        expect([one, other, sameJson(one, other)]).toEqual([
          one,
          other,
          // The text's helper is made of assignments, which lose this key: here it counts.
          JSON.stringify([one, other]).includes("__proto__")
            ? JSON.stringify(one) === JSON.stringify(other)
            : canonicalJson(one) === canonicalJson(other),
        ]);
  });
});
