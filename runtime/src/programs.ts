import { execFile } from "node:child_process";
import { accessSync, constants, existsSync } from "node:fs";
import { mkdir, rename } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { replaceFile } from "@bulkhead/lib/std/replace-file.ts";
import { holderProgram } from "./spec/holder-program.ts";

const runs = (path: string): boolean => {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
};

/**
 * Our small programs: the pod's holder, which we write ourselves, and the parent of exec'd processes, which comes
 * with the release (bin/ beside the program). From a source tree it is compiled once, into `dir`.
 */
export const ownPrograms = async (dir: string): Promise<{ holder: string; reaper: string }> => {
  await mkdir(dir, { recursive: true, mode: 0o755 });
  const holder = join(dir, "bulkhead-holder");
  await replaceFile(holder, holderProgram(process.arch), 0o755);
  const name = "bulkhead-exec-reaper";
  const shipped = [join(import.meta.dirname, "bin", name), join(import.meta.dirname, "..", "bin", name)].find(
    runs,
  );
  if (shipped !== undefined) return { holder, reaper: shipped };
  const reaper = join(dir, name);
  const source = join(import.meta.dirname, "monitor/exec/reaper.c");
  if (!existsSync(source)) {
    if (runs(reaper)) return { holder, reaper };
    throw new RuntimeError("failed-precondition", `Cannot run commands in containers: ${name} is missing`);
  }
  try {
    await promisify(execFile)("cc", ["-Os", "-static", "-o", `${reaper}.new`, source]);
  } catch (error) {
    throw new RuntimeError("failed-precondition", `Cannot compile ${source}: ${messageOf(error)}`, {
      cause: error,
    });
  }
  await rename(`${reaper}.new`, reaper);
  return { holder, reaper };
};
