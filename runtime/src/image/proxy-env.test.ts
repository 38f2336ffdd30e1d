import { expect, test } from "vitest";
import { proxyFor } from "./proxy-env.ts";

const through = (url: string, env: Record<string, string>): string | undefined =>
  proxyFor(new URL(url), env)?.href;

test("The proxy is that of the URL's scheme, lower case first, with or without a scheme of its own", () => {
  const env = { HTTP_PROXY: "http://plain:1", HTTPS_PROXY: "secure:2", https_proxy: "http://lower:3" };
  expect(through("http://a.example/", env)).toBe("http://plain:1/");
  expect(through("https://a.example/", env)).toBe("http://lower:3/");
  expect(through("https://a.example/", { HTTPS_PROXY: "secure:2" })).toBe("http://secure:2/");
  expect(through("https://a.example/", { HTTPS_PROXY: "ftp://x" })).toBeUndefined();
  expect(through("https://a.example/", {})).toBeUndefined();
});

test("Loopback is never asked through a proxy", () => {
  for (const host of ["localhost:5000", "127.0.0.1", "127.9.9.9:80", "[::1]:5000"])
    expect(through(`http://${host}/`, { HTTP_PROXY: "http://p:1" }), host).toBeUndefined();
});

test.each([
  ["*", "https://any.example/", false],
  ["example.com", "https://example.com/", false],
  ["example.com", "https://a.example.com/", false],
  ["example.com", "https://notexample.com/", true],
  [".example.com", "https://a.example.com/", false],
  [".example.com", "https://example.com/", true],
  ["*.example.com", "https://a.example.com/", false],
  ["example.com:8443", "https://example.com:8443/", false],
  ["example.com:8443", "https://example.com/", true],
  ["10.0.0.0/8", "https://10.1.2.3/", false],
  ["10.0.0.0/8", "https://11.1.2.3/", true],
  ["10.0.0.0/99", "https://10.1.2.3/", true],
  ["10.0.0.0/8", "https://ten.example/", true],
  ["fd00::/8", "https://[fd12::1]/", false],
  ["192.0.2.7", "https://192.0.2.7:5000/", false],
  [" , other.example ,", "https://a.example/", true],
])("NO_PROXY=%s: %s through the proxy: %s", (list, url, expected) => {
  expect(through(url, { HTTPS_PROXY: "http://p:1", NO_PROXY: list }) !== undefined).toBe(expected);
});
