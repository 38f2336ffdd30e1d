import { parse } from "smol-toml";
import { expect, test } from "vitest";
import { withBinary } from "./restore.ts";

test("A pod's own runsc takes the place of the profile's, before every table; the rest stays", () => {
  const profile = 'root = "/run/runsc"\nbinary_name = "/opt/runsc"\n[runsc_config]\nplatform = "systrap"\n';
  const expected = { binary_name: "/run/x/bulkhead-restore", runsc_config: { platform: "systrap" } };
  expect(parse(withBinary(profile, expected.binary_name))).toEqual({ ...expected, root: "/run/runsc" });
  expect(parse(withBinary("[runsc_config]\nplatform = 'systrap'", expected.binary_name))).toEqual(expected);
  expect(parse(withBinary("", expected.binary_name))).toEqual({ binary_name: expected.binary_name });
});
