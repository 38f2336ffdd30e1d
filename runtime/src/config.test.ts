import { readFileSync } from "node:fs";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Config } from "@bulkhead/lib/api/runtime-config.ts";
import { expect, test } from "vitest";
import { defaultConfig, parseConfig, readConfig, withFlags } from "./config.ts";

test("the documented default configuration parses to the defaults", () => {
  expect(parseConfig(defaultConfig, "default")).toEqual(Config.parse({}));
});

test("the documented default configuration names every key", () => {
  for (const key of Object.keys(Config.shape)) expect(defaultConfig).toMatch(new RegExp(`^${key}:`, "m"));
});

test("an empty file is a valid configuration", () => {
  expect(parseConfig("", "empty").socket).toBe("/run/bulkhead/cri.sock");
});

test.each([
  ["sokcet: /x", "sokcet: unknown key"],
  ["cni:\n  binDir: /x", "cni.binDir: unknown key"],
  ["runtimes:\n  - name: a\n    kind: oci\n    binary: runc", "runtimes.0.binary: must be an absolute path"],
  ["registries:\n  mirrors:\n    a: [ftp://x]", "registries.mirrors.a.0: must be an http or https URL"],
  [
    "registries:\n  mirrors:\n    a: [https://user:pw@x]",
    "registries.mirrors.a.0: must be an http or https URL",
  ],
  ["registries:\n  mirrors:\n    a: [https://x?y]", "registries.mirrors.a.0: must be an http or https URL"],
  ["tracing:\n  endpoint: collector:4318", "tracing.endpoint: "],
  ["tracing:\n  samplingRatio: 2", "tracing.samplingRatio: "],
  ["log:\n  level: loud", "log.level: "],
  ["images:\n  signatures:\n    - images: []\n      keys: []", "images.signatures.0.images: "],
  [
    "images:\n  signatures:\n    - images: [a]\n      keys: [cosign.pub]",
    "images.signatures.0.keys.0: must be",
  ],
  ["images:\n  pullProgressTimeout: 0", "images.pullProgressTimeout: "],
  ["socket: [", "Cannot parse FILE: "],
  ["- socket", "Cannot use FILE:\n  Invalid input: expected object, received array"],
  ["registries:\n  mirrors:\n    https://a: []", "registries.mirrors.https://a: must be HOST[:PORT]"],
  [
    "runtimes:\n  - { name: a, kind: oci, binary: /x }\n  - { name: a, kind: oci, binary: /y }",
    'runtimes.1.name: "a" is there already',
  ],
  ["socket: /a\n---\nsocket: /b", "it has 2 documents, not one"],
  ["metrics:\n  listen: 127.0.0.1:70000", "metrics.listen: must have a port up to 65535"],
])("%j is refused with the path of the key", (text, message) => {
  expect(() => parseConfig(text, "FILE")).toThrow(message);
});

test("flags win over the file, and are checked as it is", () => {
  const config = Config.parse({ registries: { mirrors: { a: ["http://x"] } }, log: { format: "text" } });
  const merged = withFlags(config, { socket: "/s", mirror: { b: ["http://y"] }, logLevel: "warn" });
  expect(merged).toEqual({
    ...config,
    socket: "/s",
    registries: { ...config.registries, mirrors: { a: ["http://x"], b: ["http://y"] } },
    log: { level: "warn", format: "text" },
  });
  expect(() => withFlags(config, { state: "run", mirror: {} })).toThrow(
    "Cannot use the flags:\n  state: must be an absolute path",
  );
});

test("a file that was named must be there", async () => {
  await expect(readConfig("/does/not/exist")).rejects.toThrow("Cannot read /does/not/exist");
});

test("a file that was named is read", async () => {
  await using scratch = await mkdtempDisposable(join(tmpdir(), "bulkhead-config-"));
  const file = join(scratch.path, "runtime.yaml");
  await writeFile(file, "defaultHandler: crun\n");
  expect((await readConfig(file)).defaultHandler).toBe("crun");
  expect(readFileSync(file, "utf8")).toContain("crun");
});
