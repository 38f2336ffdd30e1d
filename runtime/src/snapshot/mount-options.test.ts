import { expect, test } from "vitest";
import { contextOf, joinOptions } from "./mount-options.ts";

test("an SELinux label keeps its commas among the options of mount(2)", () => {
  const context = "system_u:object_r:container_file_t:s0:c1,c2";
  expect(joinOptions([["lowerdir", "/a:/b"], ...contextOf(context), ["volatile", ""]])).toBe(
    `lowerdir=/a:/b,context="${context}",volatile`,
  );
});
