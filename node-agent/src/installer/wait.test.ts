import { expect, test } from "vitest";
import { lastWords } from "./wait.ts";

const systemd = [
  "Started x.service - X.",
  "x.service: Main process exited, code=exited, status=1/FAILURE",
  "x.service: Unit process 1186 (exe) remains running after unit stopped.",
  "This usually indicates unclean termination of a previous run, or service implementation deficiencies.",
];

test("a service's own words come before what systemd says of its end", () => {
  expect(lastWords(["cannot read the configuration", ...systemd].join("\n"), "x.service")).toBe(
    "cannot read the configuration",
  );
});
test("of a service that said nothing, systemd's words are told", () => {
  expect(lastWords(`${systemd.join("\n")}\n`, "x.service")).toBe(systemd.join("\n"));
});
test("no more than the last five lines of it are told, and no more than 500 characters", () => {
  const lines = [1, 2, 3, 4, 5, 6].map((n) => `line ${n}`);
  expect(lastWords(lines.join("\n"), "x.service")).toBe(lines.slice(1).join("\n"));
  expect(lastWords("x".repeat(1000), "x.service")).toHaveLength(500);
});
