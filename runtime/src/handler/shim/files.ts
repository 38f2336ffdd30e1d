import { readFileSync } from "node:fs";
import { join } from "node:path";
import { replaceFileSync } from "@bulkhead/lib/std/replace-file.ts";
import type { Exit } from "../handler.ts";
import { ExitFile, MemoryFile } from "./state.ts";

/** Files of a state directory, beside the bundle. On tmpfs: replaced atomically, never synced. */
export const files = {
  shim: "shim.json",
  container: "container.json",
  exit: "exit.json",
  memory: "memory.json",
  io: "io",
} as const;

export function writeState(directory: string, name: string, value: object): void {
  replaceFileSync(join(directory, name), JSON.stringify(value));
}

/** undefined when there is none. */
export function readState(directory: string, name: string): unknown {
  try {
    return JSON.parse(readFileSync(join(directory, name), "utf8"));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** An exit is written down before anybody is told: the shim forgets it when the task is deleted. */
export const writeExit = (directory: string, exit: Exit): void =>
  writeState(directory, files.exit, { ...exit, finishedAt: String(exit.finishedAt) });

export const readMemory = (directory: string): MemoryFile =>
  MemoryFile.parse(readState(directory, files.memory) ?? { limit: 0, exceeded: false });

export function readExit(directory: string): Exit | undefined {
  const file = readState(directory, files.exit);
  if (file === undefined) return undefined;
  const { finishedAt, ...exit } = ExitFile.parse(file);
  return { ...exit, finishedAt: BigInt(finishedAt) };
}
