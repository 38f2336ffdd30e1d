import { readFileSync } from "node:fs";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { isExhausted } from "./exhausted.ts";

/** A process that cannot be mistaken for a later one with the same number. */
export type ProcessId = { pid: number; startTime: bigint };

/** Fields of /proc/PID/stat (proc(5)) that we use. The command may hold spaces and parentheses. */
export const parseProcessStat = (
  text: string,
): { state: string; parent: number; session: number; startTime: bigint } => {
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return {
    state: fields[0]!,
    parent: Number(fields[1]),
    session: Number(fields[3]),
    startTime: BigInt(fields[19]!),
  };
};

/**
 * What /proc says of `pid`, undefined when it is gone. Throws `resource-exhausted` without a file descriptor to ask by:
 * who cannot be asked is not gone. procfs answers from memory: reading it does not block.
 */
export const readProcess = (pid: number): ReturnType<typeof parseProcessStat> | undefined => {
  try {
    return parseProcessStat(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch (cause) {
    if (!isExhausted(cause)) return undefined;
    throw new RuntimeError(
      "resource-exhausted",
      `Cannot look at process ${pid}: no file descriptors are left`,
      { cause },
    );
  }
};

/** The identity of a process that runs now; undefined when it is gone. Throws as {@link readProcess} does. */
export const identify = (pid: number): ProcessId | undefined => {
  const startTime = readProcess(pid)?.startTime;
  return startTime === undefined ? undefined : { pid, startTime };
};

/**
 * False for a zombie too: it runs nothing any more. One that cannot be looked at counts as alive: what is there to see is
 * seen by the next look, and a container that is called lost is killed.
 */
export const isAlive = ({ pid, startTime }: ProcessId): boolean => {
  try {
    const now = readProcess(pid);
    return now !== undefined && now.startTime === startTime && now.state !== "Z" && now.state !== "X";
  } catch {
    return true;
  }
};
