import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { credentialsOf, meantFor, parseChallenges } from "./auth.ts";

describe("parseChallenges()", () => {
  test.each([
    [
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
      [
        {
          scheme: "bearer",
          parameters: {
            realm: "https://auth.docker.io/token",
            service: "registry.docker.io",
            scope: "repository:a/b:pull,push",
          },
        },
      ],
    ],
    ['Basic realm="x"', [{ scheme: "basic", parameters: { realm: "x" } }]],
    ["Negotiate", [{ scheme: "negotiate", parameters: {} }]],
    [
      'Negotiate, Basic realm="a, b", charset=UTF-8, Bearer realm="c \\"d\\"" , error=invalid_token',
      [
        { scheme: "negotiate", parameters: {} },
        { scheme: "basic", parameters: { realm: "a, b", charset: "UTF-8" } },
        { scheme: "bearer", parameters: { realm: 'c "d"', error: "invalid_token" } },
      ],
    ],
    ["BEARER Realm = https://x/y?z", [{ scheme: "bearer", parameters: { realm: "https://x/y?z" } }]],
    ["", []],
    ['="x"', []],
    ['realm="x"', []],
  ])("reads %s", (header, challenges) => {
    expect(
      parseChallenges(header).map(({ scheme, parameters }) => ({ scheme, parameters: { ...parameters } })),
    ).toEqual(challenges);
  });

  test("ends for every header, soon", () => {
    fc.assert(fc.property(fc.string(), (header) => Array.isArray(parseChallenges(header))));
    const began = performance.now();
    for (const unit of ["a=", '"', "\\", ", ", "a ", 'a="', "="])
      parseChallenges(`Bearer ${unit.repeat(100_000)}`);
    expect(performance.now() - began).toBeLessThan(5000);
  });
});

describe("credentialsOf()", () => {
  test("reads each form of the CRI's AuthConfig", () => {
    const auth = Buffer.from("me:with:colon").toString("base64");
    expect(credentialsOf(undefined)).toEqual({ kind: "anonymous" });
    expect(credentialsOf({ username: "", password: "" })).toEqual({ kind: "anonymous" });
    expect(credentialsOf({ username: "me", password: "p" })).toEqual({
      kind: "password",
      username: "me",
      password: "p",
    });
    expect(credentialsOf({ auth })).toEqual({ kind: "password", username: "me", password: "with:colon" });
    expect(credentialsOf({ identityToken: "t" })).toEqual({ kind: "identity", token: "t" });
    expect(credentialsOf({ registryToken: "t" })).toEqual({ kind: "bearer", token: "t" });
    expect(() => credentialsOf({ auth: "bm8gY29sb24=" })).toThrow(/base64 of user:password/);
  });
});

describe("meantFor()", () => {
  test("gives credentials to the registry of the image, or to the server that they name and no other", () => {
    expect(meantFor(undefined, "reg.io", true)).toBe(true);
    expect(meantFor("", "mirror.io", false)).toBe(false);
    expect(meantFor("reg.io", "reg.io", true)).toBe(true);
    expect(meantFor("https://reg.io/v1/", "reg.io", true)).toBe(true);
    expect(meantFor("https://index.docker.io/v1/", "docker.io", true)).toBe(true);
    expect(meantFor("reg.io", "evil-reg.io", true)).toBe(false);
    expect(meantFor("reg.io:5000", "reg.io", true)).toBe(false);
    expect(meantFor("mirror.io", "mirror.io", false)).toBe(true);
  });
});
