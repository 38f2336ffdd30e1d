import { join, normalize } from "node:path";
import { paths } from "@bulkhead/lib/api/paths.ts";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/**
 * What a container without a log names as its log path: where nothing ever is. A kubelet that removes a dead container
 * removes every file whose name begins with its path too (containerLogManager.Clean): of the empty path those in the
 * kubelet's own directory, which is the node's root, until it meets one that it cannot. /bin comes first.
 */
const nowhere = join(paths.state, "no-log");

/** A log path as a client is told it. */
export const shownLogPath = (logPath: string): string => logPath || nowhere;

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
