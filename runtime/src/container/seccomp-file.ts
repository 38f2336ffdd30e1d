import { readBounded } from "@bulkhead/lib/std/bounded-file.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { parseSeccomp } from "../spec/seccomp-profile.ts";

/** Far above any real one, which have some hundred KiB at most. */
const limit = 4 * 1024 * 1024;

/** The seccomp profile at a path of the node; errors name the file and the field. */
export const readSeccomp = async (path: string): Promise<object> => {
  const text = await readBounded(path, limit).catch((error) => {
    throw new RuntimeError("invalid-argument", `Cannot use seccomp profile "${path}": ${messageOf(error)}`, {
      cause: error,
    });
  });
  return parseSeccomp(path, text);
};
