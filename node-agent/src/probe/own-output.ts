import { open } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { ContainerState } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";

/** The log directory of a canary's pod: as the node names it, and as this program reaches it. */
export type LogDirectory = { node: string; here: string };

/** A container's logPath there. */
export const logOf = (container: string): string => `${container}.log`;

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
 * executed.
 */
export async function outputOf(
  { runtime }: CriClient,
  container: Parameters<CriClient["runtime"]["createContainer"]>[0],
  logs: LogDirectory,
  signal: AbortSignal,
): Promise<string> {
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
  await using file = await open(join(logs.here, container.config?.logPath ?? ""));
  const { buffer, bytesRead } = await file.read(Buffer.alloc(maxOutput), 0, maxOutput, 0);
  return outputIn(buffer.toString("utf8", 0, bytesRead));
}
