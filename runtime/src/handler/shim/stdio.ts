import { closeSync, constants, existsSync, mkdirSync, openSync, rmSync } from "node:fs";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { Linux } from "../../linux/linux.ts";
import type { ProcessId } from "../../linux/process.ts";
import { startProgram } from "../../linux/start-program.ts";
import { identifyStarted } from "./processes.ts";

/** FIFOs of one process. An absent one is "", as the shim wants it. */
export type Stdio = { stdin: string; stdout: string; stderr: string };

/** Where the FIFOs of a process stand; a terminal has one output. */
export const stdioPaths = (directory: string, process: { tty: boolean; stdin: boolean }): Stdio => ({
  stdin: process.stdin ? join(directory, "stdin") : "",
  stdout: join(directory, "stdout"),
  stderr: process.tty ? "" : join(directory, "stderr"),
});

export function makeStdio(directory: string, stdio: Stdio, linux: Pick<Linux, "mkfifo">): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  for (const path of Object.values(stdio)) if (path !== "" && !existsSync(path)) linux.mkfifo(path, 0o600);
}

const { O_RDONLY, O_RDWR, O_WRONLY, O_NONBLOCK } = constants;

/** The reading end; with no writer it reads as ended. */
export const openReader = (path: string): number => openSync(path, O_RDONLY | O_NONBLOCK);

/** The writing end; fails with ENXIO when nobody reads. */
export const openWriter = (path: string): number => openSync(path, O_WRONLY | O_NONBLOCK);

/**
 * Holds every FIFO open in both directions while a shim opens its own ends, so that neither side waits for the
 * other and no reader takes the missing writer for the end of the output.
 */
export function holdOpen(stdio: Stdio): Disposable {
  return openAll([stdio.stdin, stdio.stdout, stdio.stderr], (path) => openSync(path, O_RDWR | O_NONBLOCK));
}

/** All of them or none: the second may fail where the first was the last file that we may open. */
const openAll = (
  paths: readonly string[],
  open: (path: string) => number,
): Disposable & { fds: number[] } => {
  const fds: number[] = [];
  const close = (): void => {
    for (const fd of fds.splice(0)) closeSync(fd);
  };
  try {
    for (const path of paths) if (path !== "") fds.push(open(path));
  } catch (error) {
    close();
    throw error;
  }
  return { fds, [Symbol.dispose]: close };
};

/**
 * A writer of our own for the input, taken while it is held open. A shim opens its ends after it has answered, the
 * reader maybe before the writer: without another writer it would find its input ended before it began.
 */
export function holdInput(stdio: Stdio): Disposable {
  const fds = stdio.stdin === "" ? [] : [openWriter(stdio.stdin)];
  return {
    [Symbol.dispose]: () => {
      for (const fd of fds.splice(0)) closeSync(fd);
    },
  };
}

/**
 * Keeps a container's output while nobody reads it. The shim has both ends of the FIFOs open for as long as it
 * copies, but closes them when the container exits, and what no one read is gone then. This process (the pause
 * program, a few pages) has the reading ends open from before Create until the container is removed, so what a
 * container said last outlives a daemon that is down.
 */
export function startKeeper(program: string, stdio: Stdio): ProcessId {
  using outputs = openAll([stdio.stdout, stdio.stderr], openReader);
  const child = startProgram(program, [], {
    cwd: "/",
    env: {},
    detached: true,
    stdio: ["ignore", ...outputs.fds, ...(outputs.fds.length < 2 ? (["ignore"] as const) : [])],
  });
  child.on("error", () => {});
  child.unref();
  const keeper = identifyStarted(child);
  if (!keeper) throw new RuntimeError("failed-precondition", `Cannot run ${program}`);
  return keeper;
}

export const removeStdio = (directory: string): void => rmSync(directory, { recursive: true, force: true });
