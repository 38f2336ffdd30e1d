import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { BlobFile } from "./blob-file.ts";
import { layoutDirectory, layoutRepository } from "./oci-layout.ts";

let root: string;
const signal = new AbortController().signal;
const manifest = JSON.stringify({
  schemaVersion: 2,
  mediaType: "application/vnd.oci.image.manifest.v1+json",
});

/** Writes a blob and returns its digest. */
const blob = (text: string): string => {
  const hex = createHash("sha256").update(text).digest("hex");
  writeFileSync(join(root, "blobs/sha256", hex), text);
  return `sha256:${hex}`;
};

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "bh-layout-"));
  mkdirSync(join(root, "blobs/sha256"), { recursive: true });
  const annotations = { "org.opencontainers.image.ref.name": "1" };
  const entry = {
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    digest: blob(manifest),
    annotations,
  };
  writeFileSync(join(root, "index.json"), JSON.stringify({ schemaVersion: 2, manifests: [entry] }));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

test("an oci: mirror names a directory; other mirrors do not", () => {
  expect(layoutDirectory("oci:/opt/x")).toBe("/opt/x");
  expect(layoutDirectory("oci:///opt/x")).toBe("/opt/x");
  expect(layoutDirectory("https://mirror/opt/x")).toBeUndefined();
});

test("a tag and a digest both give the manifest", async () => {
  const repository = layoutRepository(root, "canary");
  const byTag = await repository.manifest("1", signal);
  expect(byTag.bytes.toString()).toBe(manifest);
  expect(await repository.manifest(byTag.digest, signal)).toEqual(byTag);
});

test("a tag that the layout does not have is not found", async () => {
  await expect(layoutRepository(root, "canary").manifest("2", signal)).rejects.toMatchObject({
    code: "not-found",
  });
});

test("a blob with other content than its digest is refused", async () => {
  const digest = blob("right");
  writeFileSync(join(root, "blobs/sha256", digest.slice(7)), "wrong");
  const descriptor = { mediaType: "x", digest, size: 5 };
  await expect(layoutRepository(root, "canary").blob(descriptor, signal)).rejects.toThrow(/other content/);
  await expect(
    (async () => {
      await using file = await BlobFile.open(join(root, "f"), descriptor, signal);
      await layoutRepository(root, "canary").download(file, signal);
    })(),
  ).rejects.toThrow(/does not have the digest/);
});

test("a download is a new file with the blob's bytes", async () => {
  const file = join(root, "f");
  {
    const descriptor = { mediaType: "x", digest: blob("bytes"), size: 5 };
    await using into = await BlobFile.open(file, descriptor, signal);
    await layoutRepository(root, "canary").download(into, signal);
  }
  expect(readFileSync(file, "utf8")).toBe("bytes");
});

test("a digest cannot lead out of the directory", async () => {
  await expect(
    layoutRepository(root, "canary").manifest("sha256:../../../etc/passwd", signal),
  ).rejects.toMatchObject({ code: "invalid-argument" });
});
