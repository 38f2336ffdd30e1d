import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { RuntimeProfileSpec } from "@bulkhead/lib/api/runtime-profile.ts";
import { shimBinary } from "@bulkhead/lib/api/shim.ts";
import { load } from "js-yaml";
import { describe, expect, test } from "vitest";
import { checkOf, profileFiles, programsOf, unsupported, wallOf } from "./files.ts";
import { shimPath } from "./shim.ts";

const desired = (shim: object): DesiredProfile => {
  const { handler, artifact, engine, probe } = RuntimeProfileSpec.parse({
    handler: { shim: { runtimeType: "io.containerd.wasmtime.v1", ...shim } },
  });
  return { handler, artifact, engine, probe, name: "wasm", revision: "0123456789" };
};
const node = { arch: "amd64" as const, vhostNet: true, shim: "/usr/local/bin/containerd-shim-wasmtime-v1" };
const files = (shim: object) => profileFiles(desired(shim), "v1", "systrap", node);
const handlerOf = (shim: object) => load(files(shim)["/etc/bulkhead/handlers.d/wasm.yaml"] ?? "");

test("a runtime type names its binary as containerd does", () => {
  expect(shimBinary("io.containerd.kata-qemu.v2")).toBe("containerd-shim-kata-qemu-v2");
  expect(shimBinary("io.containerd.runc.v2")).toBe("containerd-shim-runc-v2");
  expect(shimBinary("io.containerd.runc.v2-rs")).toBe("containerd-shim-runc-v2-rs");
});

describe("A profile of any shim", () => {
  test("becomes a handler of the runtime, with its wall and its own deadlines", () => {
    expect(handlerOf({ wall: "vm", sandboxApi: true, deadlines: { create: 600 } })).toEqual({
      kind: "shim",
      name: "wasm",
      revision: "0123456789",
      binary: node.shim,
      optionsTypeUrl: "",
      wall: "vm",
      sandboxApi: true,
      allowedAnnotations: [],
      deadlines: { create: 600, start: 120, stop: 30 },
      env: {},
    });
    expect(wallOf(desired({ wall: "vm" }))).toEqual({ wall: "vm" });
  });

  test("has its options in a file of its revision, as they were written, and passes them by path and by text", () => {
    const options = { config: "[runtime]\nfuel = 3\n" };
    const path = "/etc/bulkhead/shim/wasm.0123456789.toml";
    expect(files({ options })[path]).toBe(options.config);
    expect(handlerOf({ options })).toMatchObject({
      optionsTypeUrl: "io.containerd.wasmtime.v1",
      configPath: path,
      configInline: true,
    });
    const json = { typeUrl: "example.Options", format: "json", config: "{}" };
    expect(handlerOf({ options: json })).toMatchObject({
      optionsTypeUrl: "example.Options",
      configPath: "/etc/bulkhead/shim/wasm.0123456789.json",
    });
  });

  test("of runc's shim has runc's own options", () => {
    expect(handlerOf({ runtimeType: "io.containerd.runc.v2", wall: "namespaces" })).toMatchObject({
      optionsTypeUrl: "containerd.runc.v1.Options",
    });
  });

  test("is checked by asking the shim its version", () => {
    expect(checkOf(desired({}), "v1", "systrap", node)).toEqual([node.shim, "-v"]);
    expect(programsOf(desired({}))).toEqual(["bin/containerd-shim-wasmtime-v1"]);
  });

  test("is not supported where its binary is nowhere, or its options are not what they say", () => {
    const has = () => false;
    expect(unsupported(desired({}), { has, shim: node.shim })).toBeUndefined();
    expect(unsupported(desired({}), { has })).toMatch(
      /containerd-shim-wasmtime-v1 is neither in .* \/usr\/bin/,
    );
    const broken = desired({ options: { config: "a = [" } });
    expect(unsupported(broken, { has, shim: node.shim })).toMatch(/options\.config is no toml/);
    const json = desired({ options: { format: "json", config: "{" } });
    expect(unsupported(json, { has, shim: node.shim })).toMatch(/options\.config is no json/);
  });

  test("is looked for in the bundle first, then where the node has programs", () => {
    const brings = (path: string) => path === "bin/containerd-shim-wasmtime-v1";
    const isProgram = (path: string) => path.startsWith("/usr/bin/");
    expect(shimPath(desired({}), "/root", { brings, isProgram })).toBe(
      "/root/bin/containerd-shim-wasmtime-v1",
    );
    expect(shimPath(desired({}), "/root", { brings: () => false, isProgram })).toBe(
      "/usr/bin/containerd-shim-wasmtime-v1",
    );
    expect(shimPath(desired({}), "/root", { brings: () => false, isProgram: () => false })).toBeUndefined();
  });
});
