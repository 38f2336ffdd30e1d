import type { HandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import type { Runtime } from "./runtime.ts";

/** Root file systems as disks, for handlers that want them so (Kata with rootfs: block, Firecracker always). */

/** Of the pod's own container: it holds one program. */
export const holderDiskMiB = 8;

const kataOf = (handler: HandlerConfig) => (handler.kind === "shim" ? handler.kata : undefined);

/** Whether the handler takes root file systems as disks. */
export const wantsDisk = (handler: HandlerConfig): boolean => kataOf(handler)?.rootfs === "block";

/** The disk of `key` from the files below `directory`, as the handler takes it; undefined where it shares directories. */
export const makeDisk = async (
  { disks }: Pick<Runtime, "disks">,
  handler: HandlerConfig,
  disk: { key: string; directory: string; sizeMiB?: number },
  signal: AbortSignal,
): Promise<string | undefined> => {
  const kata = kataOf(handler);
  if (kata === undefined || !wantsDisk(handler)) return undefined;
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(handler.deadlines.create * 1000)]);
  const file = await disks.make(disk.key, disk.directory, disk.sizeMiB ?? kata.diskMiB, deadline);
  // Kata's older runtime takes block devices alone.
  return kata.runtime === "go" ? await disks.attach(disk.key, deadline) : file;
};

/** What a container has written, in the place where its handler keeps it. */
export const writableOf = async (
  { disks, snapshotter }: Pick<Runtime, "disks" | "snapshotter">,
  handler: HandlerConfig,
  id: string,
): Promise<{ bytes: bigint; inodes: bigint }> =>
  wantsDisk(handler) ? { bytes: await disks.usage(id), inodes: 0n } : await snapshotter.usage(id);
