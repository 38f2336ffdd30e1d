import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findCredentials, parseDockerConfig } from "./docker-config.ts";

const auth = (user: string) => ({ auth: Buffer.from(`${user}:pw`).toString("base64") });
const found = (config: object, host: string, path = "team/app"): string => {
  const answer = findCredentials(parseDockerConfig(JSON.stringify(config)), { host, path });
  if (answer.at === "helper") return `helper ${answer.name} ${answer.server}`;
  if (answer.at === "nowhere") return "nowhere";
  return answer.credentials.kind === "password" ? answer.credentials.username : answer.credentials.kind;
};

describe("findCredentials()", () => {
  const auths = {
    "r.example": auth("host"),
    "r.example/team": auth("team"),
    "https://index.docker.io/v1/": auth("hub"),
    "*.dkr.example": auth("pattern"),
    "marked.example": {},
    "token.example": { identitytoken: "t" },
  };
  test.each([
    ["r.example", "team/app", "team"],
    ["r.example", "teams/app", "host"],
    ["docker.io", "library/busybox", "hub"],
    ["one.dkr.example", "a", "pattern"],
    ["a.b.dkr.example", "a", "nowhere"],
    ["evil-r.example", "a", "nowhere"],
    ["r.example.evil", "a", "nowhere"],
    ["r.example:5000", "a", "nowhere"],
    ["marked.example", "a", "nowhere"],
    ["token.example", "a", "identity"],
  ])("%s/%s: %s", (host, path, expected) => {
    expect(found({ auths }, host, path)).toBe(expected);
  });

  test("a helper for the registry goes before auths, the store for all comes last", () => {
    const config = { auths, credHelpers: { "r.example": "ecr-login" }, credsStore: "pass" };
    expect(found(config, "r.example")).toBe("helper ecr-login r.example");
    expect(found(config, "docker.io")).toBe("hub");
    expect(found({ credsStore: "pass" }, "docker.io")).toBe("helper pass https://index.docker.io/v1/");
  });
});

test("A broken entry is told by its name, to its own registry alone", () => {
  const config = parseDockerConfig(
    JSON.stringify({
      auths: { "bad.example": { auth: "bm9jb2xvbg==" }, "good.example": { auth: "dTpw" } },
    }),
  );
  expect(findCredentials(config, { host: "good.example", path: "a" })).toEqual({
    at: "file",
    credentials: { kind: "password", username: "u", password: "p" },
  });
  expect(() => findCredentials(config, { host: "bad.example", path: "a" })).toThrow(/^auths\.bad\.example: /);
});

describe("parseDockerConfig()", () => {
  test.each(["../../bin/sh", "a b", "-x", ""])("refuses the helper %j", (name) => {
    expect(() => parseDockerConfig(JSON.stringify({ credHelpers: { a: name } }))).toThrow(/credHelpers/);
  });

  test("never says in an error what the file holds", () => {
    for (const text of ['{"auths":{"a":{"auth":12345}}}', '{"auths": s3cret']) {
      expect(() => parseDockerConfig(text)).toThrow(/auth|JSON/);
      expect(() => parseDockerConfig(text)).not.toThrow(/12345|s3cret/);
    }
  });

  test("takes or refuses whatever comes, and finds in it without a crash but for bad credentials", () => {
    fc.assert(
      fc.property(fc.json(), fc.dictionary(fc.string(), fc.record({ auth: fc.string() })), (json, auths) => {
        for (const text of [json, JSON.stringify({ auths })]) {
          try {
            findCredentials(parseDockerConfig(text), { host: "r.example", path: "a" });
          } catch (error) {
            expect(error).toMatchObject({ name: "RuntimeError" });
          }
        }
      }),
    );
  });
});
