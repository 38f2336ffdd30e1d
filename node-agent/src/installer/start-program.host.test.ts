import { refusedInWords, withoutDescriptors } from "@bulkhead/test/tools/without-descriptors.ts";
import { expect, test } from "vitest";

const module = new URL("./start-program.ts", import.meta.url).href;

test("startProgram() without file descriptors throws, and the process lives on", () => {
  // Enough for a pipe, not for a start.
  expect(withoutDescriptors(module, "startProgram", 3)).toBe(refusedInWords);
  // What it is for: the same with spawn() ends the process.
  expect(() => withoutDescriptors(module, "spawn", 3)).toThrow();
});
