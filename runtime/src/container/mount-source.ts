import { mkdir, realpath } from "node:fs/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Semaphore } from "../image/semaphore.ts";
import { waitFor } from "../record/lock.ts";

/** Looks at a time, of libuv's 64 threads: however many hang, some stay for everything else. */
const looks = new Semaphore(48);
/** Looks under way, by path: a retry joins the one that hangs instead of taking a thread of its own. */
const underWay = new Map<string, Promise<string>>();

/**
 * Where a mount's path leads on the node: symbolic links followed, a missing directory made. A file system that does
 * not answer (a network disk whose server is gone) cannot be waited for without a thread, and keeps it for as long;
 * the caller waits no longer than its signal.
 */
export const hostSource = async (path: string, signal: AbortSignal): Promise<string> => {
  if (!path.startsWith("/"))
    throw new RuntimeError("invalid-argument", `Cannot mount "${path}": not an absolute path`);
  let look = underWay.get(path);
  if (look === undefined) {
    look = looks.run(() => find(path)).finally(() => underWay.delete(path));
    underWay.set(path, look);
  }
  try {
    return await waitFor(look, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
    throw new RuntimeError(
      "deadline-exceeded",
      `Cannot mount "${path}": the file system that it is on does not answer`,
      { cause: error },
    );
  }
};

const find = async (path: string): Promise<string> => {
  try {
    return await realpath(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT")
      throw new RuntimeError("unknown", `Cannot mount "${path}": ${messageOf(error)}`, { cause: error });
    // As every engine does: kubelet's own check (hostPath type) comes before us.
    await mkdir(path, { recursive: true, mode: 0o755 });
    return await realpath(path);
  }
};
