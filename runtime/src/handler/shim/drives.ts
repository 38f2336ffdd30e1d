import { readFile } from "node:fs/promises";
import { runHostProgram } from "../../linux/host-program.ts";
import { isAlive } from "../../linux/process.ts";
import type { ProcessState } from "./state.ts";

/**
 * Drives of Firecracker. A machine has a few, made before it boots; Kata's Rust shim puts a container's disk into one by
 * mounting its file over the drive's, and gives the drive to another container when that one is gone, but leaves the mount.
 * The next one on top of it would never reach Firecracker, which has a copy of the mounts of its own: a mount of the
 * shim's is none that others follow. So what the shim left is unmounted for it.
 */

/** Where a table of mounts (mountinfo) has the disk of a container in a drive of its pod's machine. */
export const drivesOf = (mountinfo: string, sandboxId: string, id: string): string[] =>
  mountinfo.split("\n").flatMap((line) => {
    const [, , , root = "", point = ""] = line.split(" ");
    // The root of a file that was removed ends with "//deleted".
    const isDisk = root.split("/").includes(`${id}.ext4`);
    return isDisk && point.startsWith(`/run/kata/firecracker/${sandboxId}/root/drive`) ? [point] : [];
  });

/** Frees the drive of a container that is gone, where its shim did not. Idempotent. */
export async function freeDrive(
  shim: ProcessState | undefined,
  { sandboxId, id }: { sandboxId: string; id: string },
  signal: AbortSignal,
): Promise<void> {
  if (!shim || !isAlive({ pid: shim.pid, startTime: BigInt(shim.startTime) })) return;
  const mountinfo = await readFile(`/proc/${shim.pid}/mountinfo`, "utf8").catch(() => "");
  // The shim has mounts of its own.
  for (const point of drivesOf(mountinfo, sandboxId, id))
    await runHostProgram("nsenter", [`--mount=/proc/${shim.pid}/ns/mnt`, "umount", "-l", point], signal);
}
