import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  assertImage,
  chainIds,
  choosePlatform,
  limits,
  manifestTypes,
  parseConfig,
  parseManifest,
  parseUser,
  sha256,
} from "./manifest.ts";

const [ociIndex, dockerList, ociManifest, dockerManifest] = manifestTypes;
const digest = (n: number): string => sha256(String(n));
const bytes = (value: unknown): Uint8Array =>
  Buffer.from(typeof value === "string" ? value : JSON.stringify(value));
const layerType = "application/vnd.oci.image.layer.v1.tar+gzip";
const configType = "application/vnd.oci.image.config.v1+json";
const manifest = {
  schemaVersion: 2,
  mediaType: ociManifest,
  config: { mediaType: configType, digest: digest(0), size: 10 },
  layers: [{ mediaType: layerType, digest: digest(1), size: 20 }],
};
const entry = (architecture: string, n: number, extra: object = {}) => ({
  mediaType: ociManifest,
  digest: digest(n),
  size: 1,
  platform: { os: "linux", architecture, ...extra },
});
const index = { schemaVersion: 2, mediaType: ociIndex, manifests: [entry("amd64", 1)] };

describe("parseManifest()", () => {
  test("reads manifests and indexes of both formats", () => {
    for (const type of [ociManifest, dockerManifest]) {
      expect(parseManifest(bytes({ ...manifest, mediaType: type }), `${type}; charset=utf-8`).kind).toBe(
        "manifest",
      );
    }
    for (const type of [ociIndex, dockerList]) {
      expect(parseManifest(bytes({ ...index, mediaType: type }), type).kind).toBe("index");
    }
  });

  test("goes by what the document is when neither it nor the registry names a type", () => {
    expect(parseManifest(bytes({ ...manifest, mediaType: undefined }), "").kind).toBe("manifest");
    expect(parseManifest(bytes({ ...index, mediaType: undefined }), "application/json").kind).toBe("index");
  });

  test.each([
    ["what is not JSON", "{", ociManifest],
    ["null", "null", ociManifest],
    ["a list", "[]", ociManifest],
    ["Docker's schema 1", { schemaVersion: 1, name: "a", fsLayers: [] }, ""],
    ["an index that is a manifest as well", { ...index, layers: [], config: manifest.config }, ociIndex],
    ["a manifest that is an index as well", { ...manifest, manifests: [] }, ociManifest],
    ["a manifest that its registry calls an index", manifest, ociIndex],
    [
      "a digest with a path in it",
      { ...manifest, config: { ...manifest.config, digest: "sha256:../../x" } },
      ociManifest,
    ],
    [
      "a digest of an unknown kind",
      { ...manifest, config: { ...manifest.config, digest: "md5:00" } },
      ociManifest,
    ],
    ["a negative size", { ...manifest, config: { ...manifest.config, size: -1 } }, ociManifest],
    [
      "a size that is no whole number",
      { ...manifest, config: { ...manifest.config, size: 1e300 } },
      ociManifest,
    ],
    [
      "too many layers",
      { ...manifest, layers: Array(limits.layers + 1).fill(manifest.layers[0]) },
      ociManifest,
    ],
  ])("refuses %s", (_, document, type) => {
    expect(() => parseManifest(bytes(document), type)).toThrow(/manifest|index/);
  });

  test("fails only by saying so, whatever the registry sends", () => {
    const value = fc.oneof(
      fc.json().map(String),
      fc.object().map((extra) => JSON.stringify({ ...manifest, ...extra })),
    );
    fc.assert(
      fc.property(value, fc.constantFrom(...manifestTypes, ""), (text, type) => {
        try {
          parseManifest(bytes(text), type);
        } catch (error) {
          expect(error).toMatchObject({ name: "RuntimeError", code: "failed-precondition" });
        }
      }),
    );
  });
});

describe("assertImage()", () => {
  test("refuses artifacts, encrypted layers and configurations without bound", () => {
    const { config, layers } = manifest;
    const of = (change: object) =>
      ({ ...manifest, ...change }) as unknown as Parameters<typeof assertImage>[0];
    expect(() => assertImage(of({}))).not.toThrow();
    expect(() =>
      assertImage(of({ config: { ...config, mediaType: "application/vnd.oci.empty.v1+json" } })),
    ).toThrow(/not a container image/);
    expect(() =>
      assertImage(of({ layers: [{ ...layers[0], mediaType: `${layerType}+encrypted` }] })),
    ).toThrow(/type/);
    expect(() => assertImage(of({ config: { ...config, size: limits.config + 1 } }))).toThrow(/larger/);
  });
});

describe("choosePlatform()", () => {
  const choose = (manifests: object[], architecture = "amd64", variant?: string) =>
    choosePlatform({ ...index, manifests } as Parameters<typeof choosePlatform>[0], {
      os: "linux",
      architecture,
      ...(variant === undefined ? {} : { variant }),
    }).digest;

  test("takes the host's architecture, its own variant first", () => {
    expect(choose([entry("arm64", 1), entry("amd64", 2)])).toBe(digest(2));
    expect(choose([entry("amd64", 1, { os: "windows" }), entry("amd64", 2)])).toBe(digest(2));
    expect(
      choose([entry("arm", 6, { variant: "v6" }), entry("arm", 7, { variant: "v7" })], "arm", "v7"),
    ).toBe(digest(7));
    expect(choose([entry("amd64", 3, { variant: "v3" }), entry("amd64", 1)])).toBe(digest(1));
    expect(choose([entry("arm64", 8, { variant: "v8" })], "arm64")).toBe(digest(8));
  });

  test("says what there is when nothing suits", () => {
    expect(() => choose([entry("arm64", 1), entry("s390x", 2)])).toThrow(
      /not made for linux\/amd64, only for linux\/arm64, linux\/s390x/,
    );
    expect(() => choose([])).toThrow(/nothing/);
  });
});

describe("parseUser()", () => {
  test.each([
    ["", { username: "" }],
    ["0", { uid: 0, username: "" }],
    ["1002", { uid: 1002, username: "" }],
    ["1003:1004", { uid: 1003, username: "" }],
    ["2147483647", { uid: 2147483647, username: "" }],
    ["www-data", { username: "www-data" }],
    ["www-data:1004", { username: "www-data" }],
    ["1000:staff", { uid: 1000, username: "" }],
    ["0x0", { username: "0x0" }],
  ])("takes %j for %j", (text, user) => {
    expect(parseUser(text)).toEqual(user);
  });

  test.each([
    "2147483648",
    "4294967296",
    "18446744073709551616",
    "-1",
    "+0",
    "1000:4294967296",
    "1:-1",
    "a\nb",
    "a b",
    "\0",
    ":5",
    "u".repeat(300),
  ])("refuses %j: nothing overflows into root, no number is looked up as a name", (text) => {
    expect(() => parseUser(text)).toThrow(/^its USER/);
  });
});

describe("parseConfig()", () => {
  const rootfs = { type: "layers", diff_ids: [digest(1)] };

  test("fills in what is absent or null", () => {
    const empty = {
      user: "",
      env: [],
      entrypoint: [],
      cmd: [],
      workingDir: "",
      stopSignal: "",
      volumes: [],
      labels: {},
    };
    for (const config of [
      undefined,
      null,
      {},
      { Env: null, Cmd: null, Volumes: null, Labels: null, User: null },
    ]) {
      expect(parseConfig(bytes({ os: "linux", architecture: "amd64", config, rootfs }))).toMatchObject({
        config: empty,
        diffIds: [digest(1)],
        platform: { os: "linux", architecture: "amd64" },
      });
    }
  });

  test("makes paths absolute and leaves out variables that runc would refuse", () => {
    const config = { Env: ["A=1", "B", "=c", "D="], WorkingDir: "srv", Volumes: { data: {}, "/x": {} } };
    expect(parseConfig(bytes({ config, rootfs })).config).toMatchObject({
      env: ["A=1", "D="],
      workingDir: "/srv",
      volumes: ["/data", "/x"],
    });
  });

  test.each([
    ["NUL in a variable", { Env: ["A=\0"] }],
    ["NUL in an argument", { Cmd: ["\0"] }],
    ["NUL in the working directory", { WorkingDir: "/\0" }],
    ["NUL in a volume", { Volumes: { "/\0": {} } }],
    ["a stop signal that is a command", { StopSignal: "TERM; reboot" }],
    ["arguments that are no list", { Cmd: "sh -c x" }],
  ])("refuses %s", (_, config) => {
    expect(() => parseConfig(bytes({ config, rootfs }))).toThrow(/^the image configuration is not valid/);
  });

  test("keeps labels as data: none becomes a property of anything", () => {
    const text = `{"config":{"Labels":{"__proto__":"x","constructor":"y","a":"b"}},"rootfs":{"type":"layers","diff_ids":[]}}`;
    const { labels } = parseConfig(bytes(text)).config;
    expect(labels).toMatchObject({ a: "b" });
    expect(Object.getPrototypeOf(labels)).toBe(Object.prototype);
  });
});

describe("chainIds()", () => {
  test("hash each layer with all below it, as image-spec defines", () => {
    const [a, b, c] = [digest(1), digest(2), digest(3)] as [string, string, string];
    expect(chainIds([])).toEqual([]);
    expect(chainIds([a, b, c])).toEqual([a, sha256(`${a} ${b}`), sha256(`${sha256(`${a} ${b}`)} ${c}`)]);
  });
});
