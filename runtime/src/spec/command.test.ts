import { expect, test } from "vitest";
import { envOf } from "./command.ts";

test("a variable is what the pod says, a byte order mark too", () => {
  const value = Buffer.from("\ufeffa=b\nc");
  expect(
    envOf({ envs: [{ key: "A", value }] as never, tty: false }, { env: ["A=image", "B=image"] }, ""),
  ).toEqual(expect.arrayContaining(["A=\ufeffa=b\nc", "B=image"]));
});
