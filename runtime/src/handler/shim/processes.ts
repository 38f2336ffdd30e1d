import { readdirSync, readlinkSync } from "node:fs";
import { identify, type ProcessId } from "../../linux/process.ts";
import type { Program } from "../../linux/start-program.ts";
import type { ProcessState } from "./state.ts";

/** A process by its number, as it can be found again. */
export const processState = (pid: number): ProcessState | undefined => {
  const id = identify(pid);
  return id && { pid, startTime: String(id.startTime) };
};

/**
 * The identity of a program that was just started as the leader of its own session (`detached`); undefined when it did not
 * start or is gone again. One that cannot be looked at is killed: it would stay, for nobody could find it again.
 */
export const identifyStarted = ({ pid }: Pick<Program, "pid">): ProcessId | undefined => {
  if (pid === undefined) return undefined;
  try {
    return identify(pid);
  } catch (error) {
    try {
      process.kill(-pid, "SIGKILL");
    } catch {
      // It has ended.
    }
    throw error;
  }
};

/**
 * The process that a shim names, unless it is older than the shim's launch (`since`, clock ticks since boot): a
 * shim that names somebody else's process is not believed, for it would be accounted and killed as the pod's.
 */
export const namedProcess = (pid: number, since: string | undefined): ProcessState | undefined => {
  const named = processState(pid);
  return named && BigInt(named.startTime) >= BigInt(since ?? "0") ? named : undefined;
};

/** Processes whose working directory is the bundle: a shim is started there and stays. */
export const processesIn = (bundle: string): ProcessState[] =>
  readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/cwd`) === bundle;
      } catch {
        return false;
      }
    })
    .flatMap((pid) => processState(Number(pid)) ?? []);
