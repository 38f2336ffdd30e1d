import { createReadStream } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";
import { EndpointError } from "./endpoint-error.ts";
import { limits, sha256 } from "./manifest.ts";
import type { Repository } from "./registry.ts";

/**
 * A mirror that is a directory: an OCI image layout (image-spec image-layout.md), named `oci:/PATH`. It serves
 * images that come with the machine, such as the agent's canary, without any network. Digests are checked as those
 * of a registry are.
 */

const ref = "org.opencontainers.image.ref.name";

const Index = z.object({
  manifests: z
    .array(
      z.object({
        mediaType: z.string(),
        digest: z.string(),
        annotations: z.record(z.string(), z.string()).optional(),
      }),
    )
    .max(limits.children),
});

/** The directory of an `oci:` mirror, or undefined for another kind of mirror. */
export const layoutDirectory = (mirror: string): string | undefined =>
  /^oci:(?:\/\/)?(\/[^\0]*)$/.exec(mirror)?.[1];

/** The images of a layout. Its tags are those of the one repository that the mirror stands for. */
export function layoutRepository(directory: string, name: string): Repository {
  const blobAt = (digest: string): string => {
    const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1];
    if (hex === undefined) {
      throw new RuntimeError(
        "invalid-argument",
        `Cannot read "${digest}" from an image layout: only sha256 is known`,
      );
    }
    return join(directory, "blobs/sha256", hex);
  };
  const read = async (path: string, limit: number): Promise<Buffer> => {
    try {
      const { size } = await stat(path);
      if (size > limit) throw new RuntimeError("invalid-argument", `"${path}" is larger than ${limit} bytes`);
      return await readFile(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      throw new RuntimeError(
        "not-found",
        `Cannot find image "${name}": the layout "${directory}" has no "${path}"`,
      );
    }
  };
  const checked = (bytes: Buffer, digest: string): Buffer => {
    if (sha256(bytes) === digest) return bytes;
    throw new RuntimeError(
      "invalid-argument",
      `Cannot use "${name}" of "${directory}": ${digest} has other content`,
    );
  };
  return {
    manifest: async (tagOrDigest) => {
      if (tagOrDigest.includes(":")) {
        const bytes = checked(await read(blobAt(tagOrDigest), limits.manifest), tagOrDigest);
        const { mediaType } = z
          .object({ mediaType: z.string().default("") })
          .parse(JSON.parse(bytes.toString()));
        return { digest: tagOrDigest, contentType: mediaType, bytes };
      }
      let index: z.infer<typeof Index>;
      const text = await read(join(directory, "index.json"), limits.manifest);
      try {
        index = Index.parse(JSON.parse(text.toString()));
      } catch (error) {
        throw new RuntimeError(
          "invalid-argument",
          `Cannot read the layout "${directory}": ${messageOf(error)}`,
        );
      }
      const found = index.manifests.find(({ annotations }) => annotations?.[ref] === tagOrDigest);
      if (found === undefined) {
        throw new RuntimeError(
          "not-found",
          `Cannot find image "${name}:${tagOrDigest}" in the layout "${directory}"`,
        );
      }
      const bytes = checked(await read(blobAt(found.digest), limits.manifest), found.digest);
      return { digest: found.digest, contentType: found.mediaType, bytes };
    },
    // Where a layout has any, they stand under the tag of the fallback.
    referrers: async () => undefined,
    blob: async ({ digest }) => checked(await read(blobAt(digest), limits.config), digest),
    download: async (into) => {
      const path = blobAt(into.descriptor.digest);
      try {
        await into.reset();
        for await (const chunk of createReadStream(path, { highWaterMark: 512 << 10 }))
          await into.write(chunk as Buffer);
        await into.finish();
      } catch (error) {
        const gone = (error as NodeJS.ErrnoException).code === "ENOENT";
        if (!gone && !(error instanceof EndpointError)) throw error;
        throw new RuntimeError(
          gone ? "not-found" : "invalid-argument",
          `Cannot use "${name}" of "${directory}": ${messageOf(error)}`,
          { cause: error },
        );
      }
    },
  };
}
