import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Container } from "../container/state.ts";
import { layout } from "./layout.ts";

/** RFC 3339 with nanoseconds, as Go reads and writes times. */
export const rfc3339 = (nanos: bigint): string => {
  const fraction = String(nanos % 1_000_000_000n).padStart(9, "0");
  return `${new Date(Number(nanos / 1_000_000n)).toISOString().slice(0, 19)}.${fraction}Z`;
};

const never = "0001-01-01T00:00:00Z";

/**
 * Writes config.dump and status: where an archive came from, in the form that CRI-O and containerd write and
 * checkpointctl reads (checkpointctl, lib/metadata.go). Nothing in them is taken up by a restore but the image's ID.
 */
export const writeDumps = async (
  directory: string,
  container: Extract<Container, { state: "running" }>,
  from: { handler: string; imageName: string; at: bigint; pid: number | undefined },
): Promise<void> => {
  const config = {
    id: container.id,
    name: container.config.metadata?.name ?? "",
    rootfsImage: container.imageId,
    rootfsImageRef: container.imageId,
    rootfsImageName: from.imageName,
    runtime: from.handler,
    createdTime: rfc3339(container.createdAt),
    checkpointedTime: rfc3339(from.at),
    restoredTime: never,
    restored: false,
  };
  // Numbers of nanoseconds are more than a double holds: written as text.
  const status = `{"CreatedAt":${container.createdAt},"StartedAt":${container.startedAt},"FinishedAt":0,"ExitCode":0,"Pid":${from.pid ?? 0},"Reason":"","Message":""}`;
  await writeFile(join(directory, layout.config), JSON.stringify(config), { mode: 0o600 });
  await writeFile(join(directory, layout.status), status, { mode: 0o600 });
};
