import { release } from "node:os";
import * as z from "zod";
import type { HandlerFeatures } from "../handler.ts";

/** Output of the `features` subcommand (runtime-spec features.md), as far as we ask. */
const Features = z.object({
  mountOptions: z.array(z.string()).optional(),
  linux: z
    .object({
      namespaces: z.array(z.string()).optional(),
      mountExtensions: z
        .object({ idmap: z.object({ enabled: z.boolean().optional() }).optional() })
        .optional(),
    })
    .optional(),
});

/** A runtime without the subcommand, or one that says nothing of a feature, does not have it. */
export const parseFeatures = (output: string, kernel = release()): HandlerFeatures => {
  let json: unknown;
  try {
    json = JSON.parse(output);
  } catch {
    json = {};
  }
  const features = Features.safeParse(json).data ?? {};
  const [major = 0, minor = 0] = kernel.split(".").map(Number);
  // mount_setattr(2) and id-mapped mounts came with Linux 5.12.
  const recent = major > 5 || (major === 5 && minor >= 12);
  const userNamespaces =
    recent &&
    (features.linux?.namespaces?.includes("user") ?? false) &&
    (features.linux?.mountExtensions?.idmap?.enabled ?? false);
  return {
    recursiveReadOnlyMounts: recent && (features.mountOptions?.includes("rro") ?? false),
    userNamespaces,
    // A user namespace that does not own the network namespace may not mount sysfs: not offered.
    userNamespacesHostNetwork: false,
  };
};

/** The version that our specifications are written in. */
const written = "1.2.0";

/**
 * The version to call a specification by: crun refuses one that is newer than it knows, whatever is in it. A runtime
 * without the subcommand is of before 1.1.
 */
export const specVersion = (output: string): string => {
  const max = /"ociVersionMax"\s*:\s*"(\d+\.\d+[^"]{0,32})"/.exec(output)?.[1];
  if (max === undefined) return "1.0.2";
  const [major = 0, minor = 0] = max.split(".").map(Number);
  return major > 1 || (major === 1 && minor >= 2) ? written : max;
};
