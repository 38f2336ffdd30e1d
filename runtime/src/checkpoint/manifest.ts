import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";

/** What a restore may take of config.dump: another's word, so the ID of an image that is here, and names to show. */
const ConfigDump = z.object({
  id: z.string().max(256).default(""),
  rootfsImageRef: z
    .string()
    .max(512)
    // containerd writes the image's name before its digest.
    .transform((ref) => ref.slice(ref.lastIndexOf("@") + 1))
    .refine((ref) => /^sha256:[0-9a-f]{64}$/.test(ref), "must be the digest of an image"),
  rootfsImageName: z.string().max(512).default(""),
});
export type ConfigDump = z.infer<typeof ConfigDump>;

const name = z.string().min(1).max(256);

/** pod.dump of a pod's checkpoint, which is written last: with it the checkpoint is whole. */
const PodDump = z.object({
  version: z.literal(1),
  handler: name,
  checkpointedTime: z.string(),
  containers: z
    .array(
      z.object({ name, id: z.string(), rootfsImageRef: z.string(), rootfsImageName: z.string().max(512) }),
    )
    .min(1)
    .max(1000),
  /** Of each file its size and digest, by the path below the directory. */
  files: z.record(
    z.string().max(256),
    z.object({ size: z.int().min(0), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  ),
});
export type PodDump = z.infer<typeof PodDump>;

const parse = <T>(schema: z.ZodType<T>, text: string, what: string): T => {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new RuntimeError("invalid-argument", `its ${what} is not JSON`, { cause });
  }
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new RuntimeError(
    "invalid-argument",
    `its ${what} is not valid: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? "unknown"}`,
  );
};

export const parseConfigDump = (text: string): ConfigDump => parse(ConfigDump, text, "config.dump");
export const parsePodDump = (text: string): PodDump => parse(PodDump, text, "pod.dump");
