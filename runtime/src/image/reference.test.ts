import { hasCode } from "@bulkhead/lib/std/errors.ts";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatReference, parseReference } from "./reference.ts";

const hex = "0123456789abcdef".repeat(4);
const digest = `sha256:${hex}`;

describe("parseReference()", () => {
  test.each([
    ["busybox", "docker.io/library/busybox:latest"],
    ["busybox:1.36", "docker.io/library/busybox:1.36"],
    ["bitnami/redis", "docker.io/bitnami/redis:latest"],
    ["index.docker.io/library/busybox", "docker.io/library/busybox:latest"],
    ["docker.io/busybox", "docker.io/library/busybox:latest"],
    ["localhost/a", "localhost/a:latest"],
    ["localhost:5000/a:b", "localhost:5000/a:b"],
    ["registry.k8s.io/e2e-test-images/busybox:1.29-2", "registry.k8s.io/e2e-test-images/busybox:1.29-2"],
    ["[::1]:5000/a/b__c:t", "[::1]:5000/a/b__c:t"],
    ["UPPER/a", "UPPER/a:latest"],
    ["a.b/c--d.e_f/g", "a.b/c--d.e_f/g:latest"],
    [`busybox@${digest}`, `docker.io/library/busybox@${digest}`],
    [`gcr.io/a/b:tag@${digest}`, `gcr.io/a/b@${digest}`],
    [`a@sha512:${hex}${hex}`, `docker.io/library/a@sha512:${hex}${hex}`],
  ])("takes %s for %s", (text, normal) => {
    expect(formatReference(parseReference(text))).toBe(normal);
  });

  test.each([
    "",
    "/a",
    "a/",
    "a//b",
    "a:",
    "a@",
    "a:b:c",
    "Busybox",
    "docker.io/Library/a",
    "a/../b",
    "a b",
    "a\n",
    "-a.io/b",
    "a.io:port/b",
    "a:-tag",
    `a:${"t".repeat(129)}`,
    "a@sha256:1234",
    `a@md5:${hex}`,
    `a@${digest.toUpperCase()}`,
    `a@${digest}@${digest}`,
    hex,
    `a/${"b".repeat(300)}`,
    "https://docker.io/a",
    "[::1/a",
    "docker.io/",
  ])("refuses %j", (text) => {
    expect(() => parseReference(text)).toThrow(/^Invalid image reference/);
  });

  test("is stable: the normal form of what it accepts is its own normal form", () => {
    const part = fc.stringMatching(/^[a-z0-9]{1,4}([._-]{0,2}[a-z0-9]{1,3})?$/);
    const text = fc
      .tuple(
        fc.option(fc.constantFrom("gcr.io/", "localhost:1/", "docker.io/", "A/"), { nil: "" }),
        fc.array(part, { minLength: 1, maxLength: 4 }),
        fc.option(fc.stringMatching(/^:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}$/), { nil: "" }),
        fc.option(fc.constant(`@${digest}`), { nil: "" }),
      )
      .map(([domain, path, tag, at]) => domain + path.join("/") + tag + at);
    fc.assert(
      fc.property(fc.oneof(text, fc.string()), (input) => {
        let normal: string;
        try {
          normal = formatReference(parseReference(input));
        } catch (error) {
          expect(hasCode(error, "invalid-argument")).toBe(true);
          return;
        }
        expect(formatReference(parseReference(normal))).toBe(normal);
      }),
      { numRuns: 2000 },
    );
  });

  test("takes no time that grows faster than its input", () => {
    const began = performance.now();
    for (const unit of ["a-", "a_", "a.", "a/", "-", "A", ":", "a--b__"]) {
      expect(() => parseReference(`x/${unit.repeat(100_000)}!`)).toThrow();
      expect(() => parseReference(`x/${unit.repeat(120)}!`)).toThrow();
    }
    expect(performance.now() - began).toBeLessThan(5000);
  });
});
