import { join, normalize } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** Where a container's log goes: a path below its pod's log directory; "" for nowhere. */
export const logPathOf = (logDirectory: string, logPath: string): string => {
  if (logPath === "" || logDirectory === "") return "";
  const path = join(logDirectory, logPath);
  const below = `${normalize(logDirectory).replace(/\/$/, "")}/`;
  if (!path.startsWith(below) || path === below || path.includes("\0"))
    throw new RuntimeError(
      "invalid-argument",
      `Cannot log to "${logPath}": it is outside the pod's log directory`,
    );
  return path;
};
