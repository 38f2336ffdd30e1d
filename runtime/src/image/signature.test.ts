import fc from "fast-check";
import { expect, test } from "vitest";
import { globOf } from "./glob.ts";
import { parseReference } from "./reference.ts";
import { objection, ruleFor, type SignatureRule } from "./signature.ts";

test.each([
  ["r.example/prod/**", "r.example/prod/a/b", true],
  ["r.example/prod/*", "r.example/prod/a/b", false],
  ["r.example/prod/*", "r.example/prod/a", true],
  ["r.example/*", "rxexample/a", false],
  ["**", "anything/at/all", true],
  ["registry.k8s.io/pause:3.?", "registry.k8s.io/pause:3.9", true],
  ["registry.k8s.io/pause", "registry.k8s.io/pause:3.9", false],
])("glob %s names %s: %s", (pattern, name, expected) => {
  expect(globOf(pattern).test(name)).toBe(expected);
});

test("The first rule that names an image decides, by the name in its normal form", () => {
  const rules: SignatureRule[] = [
    { images: ["docker.io/library/busybox"], keys: [], identity: "any" },
    { images: ["docker.io/**"], keys: ["/k"], identity: "any" },
  ];
  expect(ruleFor(rules, parseReference("busybox:1"))).toBe(rules[0]);
  expect(ruleFor(rules, parseReference("team/app"))).toBe(rules[1]);
  expect(ruleFor(rules, parseReference("other.example/team/app"))).toBeUndefined();
});

test("objection() takes nothing but cosign's payload of this image and repository", () => {
  const digest = `sha256:${"a".repeat(64)}`;
  const reference = parseReference("r.example/prod/app:1");
  const payload = (image: unknown, name: unknown, type = "cosign container image signature") =>
    Buffer.from(
      JSON.stringify({
        critical: {
          type,
          image: { "docker-manifest-digest": image },
          identity: { "docker-reference": name },
        },
      }),
    );
  expect(objection(payload(digest, "r.example/prod/app"), digest, reference, "repository")).toBeUndefined();
  expect(objection(payload(digest, "elsewhere/app"), digest, reference, "any")).toBeUndefined();
  expect(objection(payload(digest, "r.example/prod/apps"), digest, reference, "repository")).toMatch(
    /^it is for/,
  );
  expect(objection(payload("sha256:b", "r.example/prod/app"), digest, reference, "any")).toMatch(
    /another image/,
  );
  expect(objection(payload(digest, "r.example/prod/app", "atomic"), digest, reference, "any")).toMatch(
    /type/,
  );
  fc.assert(
    fc.property(fc.oneof(fc.json(), fc.string()), (text) => {
      expect(objection(Buffer.from(text), digest, reference, "any")).toBeTypeOf("string");
    }),
  );
});
