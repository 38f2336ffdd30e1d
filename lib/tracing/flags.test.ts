import { Command } from "commander";
import { expect, test } from "vitest";
import { tracingFlags } from "./flags.ts";

const parse = (...argv: string[]) =>
  tracingFlags(new Command("p"))
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
    .parse(argv, { from: "user" })
    .opts();

test("without flags there is no endpoint, and all traces are told", () => {
  expect(parse()).toEqual({ traceEndpoint: "", traceSampling: 1 });
});

test("flags are taken", () => {
  expect(parse("--trace-endpoint=http://a:4318", "--trace-sampling=0.1")).toEqual({
    traceEndpoint: "http://a:4318",
    traceSampling: 0.1,
  });
});

test.each(["--trace-endpoint=a:4318", "--trace-sampling=2", "--trace-sampling=", "--trace-sampling=some"])(
  "%s is refused in words",
  (flag) => {
    expect(() => parse(flag)).toThrow(/is expected/);
  },
);
