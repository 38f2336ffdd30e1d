import { mkdir, realpath } from "node:fs/promises";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { Semaphore } from "../image/semaphore.ts";
import { startProgram } from "../linux/start-program.ts";
import { waitFor } from "../record/lock.ts";

/** Looks at a time by libuv's 64 threads: however many hang, most stay for everything else. */
const mostThreads = 24;
/** Further looks at a time, each by a process of its own: those of volumes on disks that answer go on. */
const mostPrograms = 500;

/** Finds mount sources, with so many looks at a time by threads. */
export const createSourceFinder = (most = mostThreads) => {
  let threads = most;
  const programs = new Semaphore(mostPrograms);
  /** Looks under way, by path: a retry joins the one that hangs instead of making its own. */
  const underWay = new Map<string, Promise<string>>();

  const byThread = async (path: string): Promise<string> => {
    threads--;
    try {
      return await realpath(path).catch(async (error: NodeJS.ErrnoException) => {
        if (error.code !== "ENOENT") throw error;
        // As every engine does: kubelet's own check (hostPath type) comes before us.
        await mkdir(path, { recursive: true, mode: 0o755 });
        return await realpath(path);
      });
    } finally {
      threads++;
    }
  };

  const find = async (path: string, program: string): Promise<string> => {
    try {
      return await (threads > 0 ? byThread(path) : programs.run(() => byProgram(path, program)));
    } catch (error) {
      throw new RuntimeError("unknown", `Cannot mount "${path}": ${messageOf(error)}`, { cause: error });
    }
  };

  return async (path: string, program: string, signal: AbortSignal): Promise<string> => {
    if (!path.startsWith("/"))
      throw new RuntimeError("invalid-argument", `Cannot mount "${path}": not an absolute path`);
    let look = underWay.get(path);
    if (look === undefined) {
      look = find(path, program).finally(() => underWay.delete(path));
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
};

/**
 * Where a mount's path leads on the node: symbolic links followed, a missing directory made. A file system that does
 * not answer (a network disk whose server is gone) cannot be waited for without a thread, and keeps it for as long;
 * the caller waits no longer than its signal. `program` is bulkhead-exec-reaper, which looks when many do.
 */
export const hostSource = createSourceFinder();

/** The same by a process, which ends with this one. */
const byProgram = (path: string, program: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const child = startProgram(program, ["-w", path], { stdio: ["ignore", "pipe", "pipe"] });
    let [found, problem] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
      found += chunk;
    });
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      problem += chunk;
    });
    child.once("error", reject);
    child.once("close", (code) => {
      if (code === 0) resolve(found);
      else reject(new Error(problem.trim() || `${program} ended with ${code}`));
    });
  });
