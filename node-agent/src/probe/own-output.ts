import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { ContainerState } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** A directory for a canary's output: as the node names it, and as this program reaches it. */
export type OutputDirectory = { node: string; here: string };

/** Its name there, which is the container's logPath. */
export const outputLog = "output.log";

/** More than a view is. */
const maxOutput = 64 << 10;

/** What was written, by the text of a log of the CRI: lines of `TIME STREAM TAG CONTENT`. */
export const outputIn = (log: string): string =>
  log
    .split("\n")
    .map((line) => {
      const [, tag, content] = /^\S+ stdout ([FP])(?: (.*))?$/.exec(line) ?? [];
      return tag === undefined ? "" : `${content ?? ""}${tag === "F" ? "\n" : ""}`;
    })
    .join("");

/**
 * Runs a container to its end and returns its standard output, by its log: for walls in which no second program can be
 * executed. Its pod's log directory is `directory`, which is the caller's to remove.
 */
export async function outputOf(
  { runtime }: CriClient,
  container: Parameters<CriClient["runtime"]["createContainer"]>[0],
  directory: OutputDirectory,
  signal: AbortSignal,
): Promise<string> {
  await mkdir(directory.here, { recursive: true, mode: 0o700 });
  const { containerId } = await runtime.createContainer(container, signal);
  await runtime.startContainer({ containerId }, signal);
  for (;;) {
    const { status } = await runtime.containerStatus({ containerId }, signal);
    if (status?.state === ContainerState.CONTAINER_EXITED) {
      if (status.exitCode === 0) break;
      throw new RuntimeError("internal", `the container ended with exit code ${status.exitCode}`);
    }
    await sleep(100, undefined, { signal });
  }
  await using file = await open(join(directory.here, outputLog));
  const { buffer, bytesRead } = await file.read(Buffer.alloc(maxOutput), 0, maxOutput, 0);
  return outputIn(buffer.toString("utf8", 0, bytesRead));
}
