import { describe, expect, test } from "vitest";
import { endpointsOf, parseMirror } from "./endpoint.ts";

const bases = (domain: string, mirrors: string[] = []): string[] =>
  endpointsOf(domain, { [domain]: mirrors }).map(({ base }) => base);

describe("endpointsOf()", () => {
  test("asks the mirrors in their order, then the registry", () => {
    expect(bases("registry.k8s.io", ["http://10.0.0.1:5000/", "https://m.io/k8s/"])).toEqual([
      "http://10.0.0.1:5000",
      "https://m.io/k8s",
      "https://registry.k8s.io",
    ]);
    expect(bases("docker.io")).toEqual(["https://registry-1.docker.io"]);
  });

  test("speaks plain HTTP to the loopback interface only, unless a URL says otherwise", () => {
    expect(bases("localhost:5000")).toEqual(["http://localhost:5000"]);
    expect(bases("127.1.2.3")).toEqual(["http://127.1.2.3"]);
    expect(bases("[::1]:5000")).toEqual(["http://[::1]:5000"]);
    expect(bases("localhost.evil.io")).toEqual(["https://localhost.evil.io"]);
    expect(bases("10.0.0.1:5000")).toEqual(["https://10.0.0.1:5000"]);
    expect(bases("10.0.0.1:5000", ["http://10.0.0.1:5000"])).toEqual(["http://10.0.0.1:5000"]);
  });
});

describe("parseMirror()", () => {
  test.each(["10.0.0.1:5000", "ftp://a", "http://user:pw@a", "http://a?x", "http://a#x", ""])(
    "refuses %j",
    (text) => {
      expect(() => parseMirror(text)).toThrow(/^Invalid mirror/);
    },
  );
});
