import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseChallenges } from "./auth.ts";
import { realmOf } from "./token.ts";
import { redirectTarget } from "./transport.ts";

const tls = new URL("https://registry.example");
const plain = new URL("http://10.0.0.1:5000");

/** Whatever a registry may write where a URL belongs; fc.webUrl() is too slow for it. */
const place = fc
  .tuple(
    fc.constantFrom("https://", "http://", "//", "ftp://", "javascript:", "", "HTTPS://", "http:\\\\"),
    fc.constantFrom("", "user:pw@", "@", "a@b@"),
    fc.constantFrom("auth.example", "registry.example", "127.0.0.1", "[::1]", "", "x y"),
    fc.oneof(fc.string({ maxLength: 20 }), fc.constantFrom("/token", ":99999/", "#f", "?a=b")),
  )
  .map((parts) => parts.join(""));

describe("realmOf()", () => {
  test.each([
    ["https://auth.example/token", tls, true],
    ["http://auth.example/token", tls, false],
    ["http://registry.example/token", tls, false],
    ["http://10.0.0.1:5001/token", plain, true],
    ["http://10.0.0.2/token", plain, false],
    ["https://user:secret@auth.example/", tls, false],
    ["file:///etc/passwd", tls, false],
    ["//auth.example/token", tls, false],
    ["", tls, false],
  ])("%s of %s may see a password: %s", (realm, base, expected) => {
    expect(realmOf(realm, base) !== undefined).toBe(expected);
  });

  test("never lets a password of a registry behind TLS go in the clear, whatever it names", () => {
    fc.assert(
      fc.property(place, (text) => {
        const realm = realmOf(text, tls);
        expect(realm === undefined || (realm.protocol === "https:" && realm.username === "")).toBe(true);
      }),
    );
  });
});

test("redirectTarget() never leaves TLS, never carries credentials, and never throws", () => {
  expect(redirectTarget(tls, "/v2/x")?.href).toBe("https://registry.example/v2/x");
  expect(redirectTarget(tls, "http://registry.example/x")).toBeUndefined();
  expect(redirectTarget(plain, "https://cdn.example/x")?.host).toBe("cdn.example");
  expect(redirectTarget(tls, "https://a:b@cdn.example/x")).toBeUndefined();
  fc.assert(
    fc.property(place, (location) => {
      const next = redirectTarget(tls, location);
      expect(next === undefined || (next.protocol === "https:" && next.password === "")).toBe(true);
    }),
  );
});

test("parseChallenges() reads whatever comes in time and without a prototype to poison", () => {
  const part = fc.oneof(
    fc.string(),
    fc.constantFrom('Bearer realm="', '",', "=", "\\", '"', ",", "Basic ", "__proto__=1", " ".repeat(100)),
  );
  fc.assert(
    fc.property(fc.array(part, { maxLength: 200 }), (parts) => {
      const began = performance.now();
      for (const { parameters } of parseChallenges(parts.join("")))
        expect(Object.getPrototypeOf(parameters)).toBeNull();
      expect(performance.now() - began).toBeLessThan(5000);
    }),
  );
});
