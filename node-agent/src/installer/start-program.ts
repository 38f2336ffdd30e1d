import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** More than any program of ours needs for its pipes and for its start. */
const needed = 12;

/**
 * spawn() for a daemon that may run out of file descriptors. Node then keeps the pipes that it has made for good, gives
 * a child without streams, and says why by an event a moment later: whoever touches the streams first leaves it to
 * nobody, which ends the whole process. Here it is an error before anything is made. Any other failure to start comes
 * as the event "error", which may go unheard.
 */
export const startProgram = ((command: string, ...rest: unknown[]) => {
  const exhausted = (cause?: unknown): RuntimeError =>
    new RuntimeError("resource-exhausted", `Cannot run "${command}": no file descriptors are left`, {
      cause,
    });
  const room: number[] = [];
  try {
    while (room.length < needed) room.push(openSync("/dev/null", "r"));
  } catch (error) {
    throw exhausted(error);
  } finally {
    for (const fd of room) closeSync(fd);
  }
  const child = (spawn as (command: string, ...rest: unknown[]) => ChildProcess)(command, ...rest);
  child.on("error", () => {});
  // Another thread may have taken them just now.
  if (child.stdio === undefined) throw exhausted();
  return child;
}) as typeof spawn;
