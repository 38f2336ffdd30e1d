import { expect, test } from "vitest";
import { readSettings } from "./runtime-config.ts";

test("settings of a cluster are what was given: defaults are the runtime's", () => {
  const given = { images: { pinned: ["registry.test/pause:*"] }, log: { level: "debug" } };
  expect(readSettings(given)).toEqual({ settings: given });
  expect(readSettings({})).toEqual({ settings: {} });
});

test.each([
  ["what is Bulkhead's own", { socket: "/x" }, "socket: is Bulkhead's own on its nodes"],
  ["the handlers, too", { runtimes: [] }, "runtimes: is Bulkhead's own on its nodes"],
  ["a key that is not there", { image: {} }, "image: unknown key"],
  ["one further down", { images: { pined: [] } }, "images.pined: unknown key"],
  ["a value of another type", { images: { pullProgressTimeout: "5m" } }, "images.pullProgressTimeout: "],
  [
    "a path that is none",
    { images: { signatures: [{ images: ["a"], keys: ["x.pub"] }] } },
    "images.signatures.0.keys.0: must be an absolute path",
  ],
  ["no object", [], "Cannot use runtime.config"],
])("refuses %s by its name", (_, given, words) => {
  const read = readSettings(given);
  expect("problem" in read && read.problem).toContain(words);
});
