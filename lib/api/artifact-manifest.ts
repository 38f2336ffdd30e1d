import * as z from "zod";

/**
 * What an unpacked artifact holds: manifest.json beside its root/. The runtime's `artifact fetch` writes it, the node
 * agent checks the files by it again and again.
 */

/** A path below the artifact's root: no "..", no control characters. */
const relativePath = z
  .string()
  .min(1)
  .max(4096)
  .refine(
    (path) =>
      !/[\p{Cc}\\]/u.test(path) &&
      path.split("/").every((part) => part !== "" && part !== "." && part !== ".."),
    "must be a relative path without ..",
  );

export const ArtifactManifest = z
  .object({
    version: z.literal(1),
    /** The digest that the artifact was asked for by: of an index or of a manifest. */
    digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
    /** Of the manifest that was taken for this node. */
    manifest: z.string(),
    /** GOOS/GOARCH. */
    platform: z.string(),
    /** By path, in order. Folders are those that the paths need. */
    files: z.array(
      z.discriminatedUnion("kind", [
        z
          .object({
            kind: z.literal("file"),
            path: relativePath,
            sha256: z.string().regex(/^[0-9a-f]{64}$/),
            size: z.int().min(0),
            /** 0644 or 0755: nothing of an artifact is setuid or writable for others. */
            mode: z.union([z.literal(0o644), z.literal(0o755)]),
          })
          .strict(),
        z
          .object({
            kind: z.literal("link"),
            path: relativePath,
            /** Relative, and inside. */
            target: z.string().min(1).max(4096),
          })
          .strict(),
      ]),
    ),
  })
  .strict();
export type ArtifactManifest = z.infer<typeof ArtifactManifest>;
