import fc from "fast-check";

/** Words that parsers stumble over. */
const nasty = [
  ...[
    '"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "<",
    ">",
    ";",
    "=",
    "\n",
    "\r\n",
    "\0",
    "..",
    "/",
    "%",
    "&a",
    "*a",
  ],
  ...["-1", "1e999", "18446744073709551616", "0x", "null", "true", "__proto__", "constructor", "toString"],
  ...["é", "\u2028", "\ud800", "{".repeat(300), "[".repeat(3000), "a".repeat(5000)],
];

type Change =
  | { how: "set"; at: number; text: string }
  | { how: "insert"; at: number; text: string }
  | { how: "cut"; at: number; length: number }
  | { how: "repeat"; at: number; length: number; times: number }
  | { how: "flip"; at: number; bit: number };

const text = fc.oneof(fc.constantFrom(...nasty), fc.string({ maxLength: 4 }));
const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ how: fc.constant("set" as const), at: fc.nat(), text }),
  fc.record({ how: fc.constant("insert" as const), at: fc.nat(), text }),
  fc.record({ how: fc.constant("cut" as const), at: fc.nat(), length: fc.integer({ min: 1, max: 60 }) }),
  fc.record({
    how: fc.constant("repeat" as const),
    at: fc.nat(),
    length: fc.integer({ min: 1, max: 60 }),
    times: fc.integer({ min: 1, max: 50 }),
  }),
  fc.record({ how: fc.constant("flip" as const), at: fc.nat(), bit: fc.integer({ min: 0, max: 6 }) }),
);

const apply = (whole: string, each: Change): string => {
  const at = whole.length === 0 ? 0 : each.at % whole.length;
  const [before, after] = [whole.slice(0, at), whole.slice(at)];
  switch (each.how) {
    case "set":
      return before + each.text + after.slice(each.text.length);
    case "insert":
      return before + each.text + after;
    case "cut":
      return before + after.slice(each.length);
    case "repeat":
      return before + after.slice(0, each.length).repeat(each.times) + after;
    case "flip":
      return before + String.fromCharCode((after.charCodeAt(0) || 0) ^ (1 << each.bit)) + after.slice(1);
  }
};

/** Real texts with some changes in them; now and then any text, or JSON of any kind. */
export const mutated = (samples: readonly string[]): fc.Arbitrary<string> =>
  fc.oneof(
    {
      weight: 8,
      arbitrary: fc
        .tuple(fc.constantFrom(...samples), fc.array(change, { maxLength: 5 }))
        .map(([sample, changes]) => changes.reduce(apply, sample)),
    },
    { weight: 1, arbitrary: fc.string({ maxLength: 300 }) },
    { weight: 1, arbitrary: fc.json() },
  );

/** Inputs of this length that cost the most: one thing over and over, or one inside the other. */
export const huge = (samples: readonly string[], length: number): string[] => [
  ...[
    "[",
    '{"a":',
    '"',
    "a",
    " ",
    "\n",
    ":",
    ",",
    ";",
    "<",
    "=",
    "/",
    ".",
    "-",
    "\0",
    "a:",
    "a,",
    '\\"',
    "a=b,",
  ].map((piece) => piece.repeat(Math.ceil(length / piece.length)).slice(0, length)),
  ...samples.map((sample) => sample.repeat(Math.ceil(length / sample.length)).slice(0, length)),
  // A real one with one long string in it.
  ...samples.map((sample) =>
    sample.replace(/[a-z]{3,}/, (word) => word.repeat(Math.ceil(length / word.length))),
  ),
];
