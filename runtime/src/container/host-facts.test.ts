import { join } from "node:path";
import { expect, test } from "vitest";
import { readContexts } from "./host-facts.ts";

test("contexts of containers are those of the node's policy, by the name that it has", () => {
  expect(readContexts(join(import.meta.dirname, "testdata/selinux"))).toEqual({
    process: { user: "system_u", role: "system_r", type: "container_t", level: "s0" },
    file: { user: "system_u", role: "object_r", type: "container_file_t", level: "s0" },
    readOnly: { user: "system_u", role: "object_r", type: "container_ro_file_t", level: "s0" },
  });
  expect(readContexts(join(import.meta.dirname, "testdata/nothing"))).toBeUndefined();
});
