import { copyFile, mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { ContainerRef } from "../handler.ts";
import { failureOf, type RuntimeCommand, run } from "./command.ts";

/** The last error in CRIU's log, without its time stamps and source lines. */
export const criuFailure = (log: string): string =>
  log
    .split("\n")
    .filter((line) => line.includes("Error"))
    .map((line) => line.replace(/^\(\d+\.\d+\)\s*(\d+:\s*)?/, "").replace(/^Error \([^)]*\):\s*/, ""))
    .slice(0, 3)
    .join("; ");

/**
 * `checkpoint --leave-running`: the container's processes as CRIU's images in `directory`/checkpoint. Whatever keeps
 * CRIU from it (not installed, a kernel that it does not know, an open file it cannot restore) is the node's or the
 * container's condition, not a defect of the request.
 */
export const checkpointTo = async (
  command: RuntimeCommand,
  { id, stateDir }: Pick<ContainerRef, "id" | "stateDir">,
  directory: string,
  signal: AbortSignal,
): Promise<void> => {
  const work = join(directory, "work");
  await mkdir(work, { recursive: true, mode: 0o700 });
  const images = join(directory, "checkpoint");
  const { code, stderr } = await run(
    command,
    ["checkpoint", "--leave-running", "--image-path", images, "--work-path", work, id],
    signal,
  );
  if (code === 0) {
    await rm(work, { recursive: true, force: true });
    return await copyFile(join(stateDir, "config.json"), join(directory, "spec.dump"));
  }
  const log = await readFile(join(work, "dump.log"), "utf8").catch(() => "");
  const why = criuFailure(log) || failureOf(stderr) || `exit code ${code}`;
  throw new RuntimeError("failed-precondition", why);
};
