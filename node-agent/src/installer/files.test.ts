import type { DesiredProfile } from "@bulkhead/lib/api/node-runtime.ts";
import { load } from "js-yaml";
import { expect, test } from "vitest";
import {
  artifactDirectory,
  checkOf,
  configPathIn,
  handlerFile,
  profileFiles,
  programRoot,
  proxyOf,
  runtimeConfig,
  unitFile,
} from "./files.ts";

const hex = "ab".repeat(32);
const image = `registry.example:5000/bulkhead/gvisor@sha256:${hex}`;
const profile = (artifact: DesiredProfile["artifact"]): DesiredProfile => ({
  name: "sandboxed",
  revision: "0123456789",
  handler: { gvisor: { platform: "auto", network: "sandbox", overlay: "memory" } },
  artifact,
  engine: "bulkhead",
  probe: { interval: "60s", assertIsolation: true },
});
const node = { arch: "amd64", vhostNet: true } as const;

test("a profile's programs stand in the bundle's version, or in its artifact by the digest alone", () => {
  expect(programRoot(profile({ bundled: true }), "1.2")).toBe("/opt/bulkhead/versions/1.2");
  expect(programRoot(profile({ image }), "1.2")).toBe(`/opt/bulkhead/artifacts/${hex}/root`);
  expect(artifactDirectory(image)).toBe(`/opt/bulkhead/artifacts/${hex}`);
});

test("every program of a handler comes from the profile's artifact", () => {
  const files = profileFiles(profile({ image }), "1.2", "systrap", node);
  const text = Object.values(files).join("\n");
  expect(files[handlerFile("sandboxed")]).toContain(`binary: /opt/bulkhead/artifacts/${hex}/root/bin/`);
  expect(text).toContain(`binary_name = "/opt/bulkhead/artifacts/${hex}/root/bin/runsc"`);
  expect(text).not.toContain("versions/1.2");
  expect(checkOf(profile({ image }), "1.2", "systrap", node)[0]).toBe(
    `/opt/bulkhead/artifacts/${hex}/root/bin/runsc`,
  );
});

test("a cluster's settings go into the runtime's configuration, beside what is Bulkhead's own", () => {
  const tracing = { endpoint: "", samplingRatio: 1 };
  const read = (settings: object) =>
    load(runtimeConfig("1.2", "/run/containerd/containerd.sock", tracing, settings)) as Record<
      string,
      object
    >;
  const plain = read({});
  const registries = {
    credentials: "/etc/bulkhead/files/auth.json",
    mirrors: { "quay.io": ["https://mirror.test"] },
  };
  const images = { pinned: ["a:*"], pullProgressTimeout: 30 };
  const set = read({ images, registries, layers: "directory", cni: { confDir: "/etc/cni/ours" } });
  expect(set).toEqual({
    ...plain,
    images,
    layers: "directory",
    cni: { ...plain.cni, confDir: "/etc/cni/ours" },
    registries: {
      ...plain.registries,
      ...registries,
      mirrors: { ...registries.mirrors, ...(plain.registries as { mirrors: object }).mirrors },
    },
  });
});

test("a proxy stands in the runtime's unit as systemd reads it", () => {
  const proxy = proxyOf({
    HTTPS_PROXY: "http://u:a%20b\\c@proxy:3128",
    NO_PROXY: "10.0.0.0/8,.svc",
    HTTP_PROXY: "",
    HOME: "/",
  });
  expect(unitFile(proxy)).toContain(
    [
      "[Service]",
      "Type=exec",
      'Environment="HTTPS_PROXY=http://u:a%%20b\\\\c@proxy:3128"',
      'Environment="NO_PROXY=10.0.0.0/8,.svc"',
      "EnvironmentFile=-/etc/bulkhead/files/runtime.env",
      "ExecStart=",
    ].join("\n"),
  );
  expect(unitFile()).not.toContain("Environment=");
  expect(() => unitFile({ NO_PROXY: "a\nExecStart=/bin/sh" })).toThrow("Cannot set NO_PROXY");
});

test("the directory of registries is found again in a configuration of ours", () => {
  const tracing = { endpoint: "", samplingRatio: 1 };
  const config = (registries?: string) => runtimeConfig("1.2", "/run/c.sock", tracing, {}, registries);
  expect(configPathIn(config("/etc/rancher/certs.d"))).toBe("/etc/rancher/certs.d");
  expect(configPathIn(config())).toBe("/etc/containerd/certs.d");
  expect(configPathIn("")).toBeUndefined();
});
