import fc from "fast-check";
import { expect, test } from "vitest";
import { artifactPath } from "./artifact.ts";

const blob = { mediaType: "x", digest: `sha256:${"a".repeat(64)}`, size: 1 };
const titled = (title: string): string =>
  artifactPath({ ...blob, annotations: { "org.opencontainers.image.title": title } });

test("artifactPath() takes plain relative names, and the digest without one", () => {
  expect(titled("dir/./model.bin")).toBe("dir/model.bin");
  expect(artifactPath(blob)).toBe(`sha256-${"a".repeat(64)}`);
});

test.each(["/etc/passwd", "../x", "a/../../x", ".", "a/.wh.b", "a\nb", "a\\b", "x".repeat(300)])(
  "artifactPath() refuses %j",
  (title) => {
    expect(() => titled(title)).toThrow(/which is no file name/);
  },
);

test("artifactPath() never leads out, whatever the title", () => {
  const part = fc.oneof(fc.string(), fc.constantFrom("..", ".", "/", "", "a", ".wh..wh..opq"));
  fc.assert(
    fc.property(fc.array(part, { maxLength: 6 }), (parts) => {
      let path: string;
      try {
        path = titled(parts.join("/"));
      } catch {
        return;
      }
      expect(path.startsWith("/")).toBe(false);
      expect(path.split("/")).not.toContain("..");
    }),
  );
});
