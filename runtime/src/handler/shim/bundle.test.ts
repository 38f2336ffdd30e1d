import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { OptionsSchema as RuncOptionsSchema } from "@bulkhead/lib/gen/shim_runc_options_pb.js";
import { OptionsSchema } from "@bulkhead/lib/gen/shim_runtime_options_pb.js";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createOptions } from "./bundle.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "bh-options-"));
});
afterEach(() => rmSync(dir, { recursive: true }));
const file = (text: string): string => {
  const path = join(dir, "options.toml");
  writeFileSync(path, text);
  return path;
};
const runc = "containerd.runc.v1.Options";

test("runc's options are read by containerd's names for them, and systemd's cgroups are the node's", () => {
  const configPath = file('BinaryName = "/usr/bin/crun"\nNoPivotRoot = true\n');
  const any = createOptions({ optionsTypeUrl: runc, configPath }, true);
  expect(any?.typeUrl).toBe(runc);
  expect(fromBinary(RuncOptionsSchema, any?.value ?? new Uint8Array())).toMatchObject({
    binaryName: "/usr/bin/crun",
    noPivotRoot: true,
    systemdCgroup: true,
  });
});

test("an option that runc's shim does not have is refused with the file's name", () => {
  const configPath = file("Binary = 1\n");
  expect(() => createOptions({ optionsTypeUrl: runc, configPath })).toThrow(/options\.toml.*binary/);
});

test("other shims get the path, and the text where they read none", () => {
  const configPath = file("a = 1\n");
  const of = (configInline: boolean) => {
    const any = createOptions({ optionsTypeUrl: "x", configPath, configInline });
    return fromBinary(OptionsSchema, any?.value ?? new Uint8Array());
  };
  expect(of(false)).toMatchObject({ typeUrl: "x", configPath, configBody: new Uint8Array() });
  expect(Buffer.from(of(true).configBody).toString()).toBe("a = 1\n");
  expect(createOptions({ optionsTypeUrl: "" })).toBeUndefined();
});
