import fc from "fast-check";
import { expect, test } from "vitest";
import { nextPage } from "./link.ts";

test.each([
  ['</v2/a/referrers/sha256:x?n=2&last=y>; rel="next"', "r?n=2&last=y"],
  ["<https://elsewhere.example/v2/b?token=1>;rel=next", "r?token=1"],
  ['</v2/a?p=1>; rel="prev", </v2/a?p=3>; rel="next"', "r?p=3"],
  ['</v2/a?p=1>; title="x"; rel="next"', "r?p=1"],
  ['</v2/a>; rel="next"', undefined],
  ['</v2/a?x#y>; rel="next"', undefined],
  ['</v2/a?p=1>; rel="last"', undefined],
  ["", undefined],
  [undefined, undefined],
])("nextPage() of %s", (header, expected) => {
  expect(nextPage(header, "r")).toBe(expected);
});

test("nextPage() takes any header, at once, and leads nowhere else", () => {
  const piece = fc.oneof(
    fc.constantFrom("<", ">", ";", 'rel="next"', "?", "rel=", "/v2/", " ", ","),
    fc.string(),
  );
  fc.assert(
    fc.property(
      fc.array(piece).map((parts) => parts.join("")),
      (header) => {
        const next = nextPage(header, "r");
        if (next !== undefined) expect(new URL(`https://h/v2/p/${next}`).pathname).toBe("/v2/p/r");
      },
    ),
  );
  const begun = performance.now();
  for (const text of ["<a", "<a>;", '<a>; rel="', "<".repeat(3)]) nextPage(text.repeat(50_000), "r");
  expect(performance.now() - begun).toBeLessThan(5000);
});
