import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import * as z from "zod";

const action = z.enum([
  "SCMP_ACT_KILL",
  "SCMP_ACT_KILL_PROCESS",
  "SCMP_ACT_KILL_THREAD",
  "SCMP_ACT_TRAP",
  "SCMP_ACT_ERRNO",
  "SCMP_ACT_TRACE",
  "SCMP_ACT_ALLOW",
  "SCMP_ACT_LOG",
  "SCMP_ACT_NOTIFY",
]);
const errno = z.int().min(0).max(65_535);
/** Up to 2^64, of which JSON keeps what a double holds. */
const word = z.number().min(0);

const Argument = z.object({
  index: z.int().min(0).max(5),
  value: word,
  valueTwo: word.optional(),
  op: z.enum([
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
  ]),
});

/** Keys that are not the runtime specification's (Docker's comments and conditions) are left out, as others do. */
const Profile = z.object({
  defaultAction: action,
  defaultErrnoRet: errno.optional(),
  architectures: z
    .array(z.string().regex(/^SCMP_ARCH_[A-Z0-9_]+$/, "must be SCMP_ARCH_*"))
    .max(64)
    .optional(),
  flags: z
    .array(z.string().regex(/^SECCOMP_FILTER_FLAG_[A-Z_]+$/, "must be SECCOMP_FILTER_FLAG_*"))
    .max(16)
    .optional(),
  listenerPath: z.string().optional(),
  listenerMetadata: z.string().optional(),
  syscalls: z
    .array(
      z.object({
        names: z.array(z.string().min(1).max(64)).min(1).max(1024),
        action,
        errnoRet: errno.optional(),
        args: z.array(Argument).max(64).nullish(),
      }),
    )
    .max(4096)
    .optional(),
});

const at = (path: readonly PropertyKey[]): string =>
  path
    .map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`))
    .join("")
    .replace(/^\./, "");

/** A profile of the node's (config-linux.md, "Seccomp"); errors name the file and the field. */
export const parseSeccomp = (file: string, text: string): object => {
  const refuse = (why: string, cause?: unknown): RuntimeError =>
    new RuntimeError("invalid-argument", `Cannot use seccomp profile "${file}": ${why}`, { cause });
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw refuse(messageOf(error), error);
  }
  const parsed = Profile.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw refuse(`${at(issue?.path ?? []) || "the profile"}: ${issue?.message ?? "not valid"}`);
  }
  const { syscalls, ...rest } = parsed.data;
  return {
    ...rest,
    ...(syscalls && {
      syscalls: syscalls.map(({ args, ...rule }) => ({ ...rule, ...(args && { args }) })),
    }),
  };
};
