import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { hasCode, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { startProgram } from "../../linux/start-program.ts";
import type { ContainerRef } from "../handler.ts";
import { bundleOf } from "./bundle.ts";
import { namespace } from "./command.ts";
import type { ShimPod } from "./pod.ts";

type Runsc = { binary: string; root: string };

/** {@link import("../handler.ts").Handler.checkpoint} of gVisor: of a pod's only container. */
export const checkpointContainer = async (
  runsc: Runsc,
  pod: ShimPod,
  { id, stateDir }: Pick<ContainerRef, "id" | "stateDir">,
  directory: string,
  signal: AbortSignal,
): Promise<void> => {
  const others = othersThan(pod, [id]);
  if (others > 0)
    throw new RuntimeError(
      "failed-precondition",
      `gVisor saves a pod as a whole, and ${others} other ${others === 1 ? "container is" : "containers are"} in it: CheckpointPod saves them together`,
    );
  await forgetEnded(pod, signal);
  await checkpointSandbox(runsc, pod.id, join(directory, "checkpoint"), signal);
  await copyFile(join(bundleOf(stateDir, id), "config.json"), join(directory, "spec.dump"));
  await rootfsChanges(runsc, id, join(directory, "rootfs-diff.tar"), signal);
};

/** {@link import("../handler.ts").Handler.checkpointPod} of gVisor. */
export const checkpointPod = async (
  runsc: Runsc,
  pod: ShimPod,
  containers: readonly Pick<ContainerRef, "id">[],
  directory: string,
  signal: AbortSignal,
): Promise<void> => {
  const others = othersThan(
    pod,
    containers.map(({ id }) => id),
  );
  if (others > 0)
    throw new RuntimeError(
      "failed-precondition",
      `gVisor saves a pod as a whole, and ${others} more ${others === 1 ? "container is" : "containers are"} in it than were named`,
    );
  await forgetEnded(pod, signal);
  await checkpointSandbox(runsc, pod.id, join(directory, "checkpoint"), signal);
};

/** How many containers the sandbox has beside these. */
const othersThan = (pod: ShimPod, ids: readonly string[]): number =>
  [...pod.containers.values()].filter(({ id, exit }) => !ids.includes(id) && exit === undefined).length;

/**
 * Saves a gVisor sandbox with everything in it into `images`, and lets it go on. Its shim has no call for that
 * (Checkpoint is unimplemented there), so runsc is asked. The pages are not compressed: the sandbox stands still
 * until they are written.
 */
const checkpointSandbox = async (
  runsc: Runsc,
  sandboxId: string,
  images: string,
  signal: AbortSignal,
): Promise<void> => {
  await mkdir(images, { mode: 0o700 });
  const options = ["--leave-running", "--exclude-committed-zero-pages", "--image-path", images];
  await runRunsc(runsc, ["checkpoint", ...options, sandboxId], signal);
};

/** What the container changed in its root file system, which gVisor keeps to itself, as the tar archive `file`. */
const rootfsChanges = (runsc: Runsc, containerId: string, file: string, signal: AbortSignal): Promise<void> =>
  runRunsc(runsc, ["tar", "rootfs-upper", "--file", file, containerId], signal);

/**
 * Removes containers that have ended from the shim and the sandbox, whose image would hold them: a restore waits for
 * every container that the image counts. Their exits are on file.
 */
const forgetEnded = async (pod: ShimPod, signal: AbortSignal): Promise<void> => {
  for (const { id, exit, settled, abandoned } of pod.containers.values()) {
    if (exit === undefined || abandoned) continue;
    await settled;
    try {
      await pod.task.delete({ id }, { signal, timeoutMs: 10_000 });
    } catch (error) {
      if (!hasCode(error, "not-found")) throw error;
    }
  }
};

const maxSaid = 16 << 10;

/** What keeps runsc from it is the pod's or the node's condition: its last words say which. */
const runRunsc = (runsc: Runsc, args: string[], signal: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    // The shim appends its namespace to the root that it is configured with.
    const child = startProgram(runsc.binary, ["--root", join(runsc.root, namespace), ...args], {
      stdio: ["ignore", "ignore", "pipe"],
      signal,
      killSignal: "SIGKILL",
    });
    let said = "";
    child.stderr.on("data", (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-maxSaid);
    });
    child.once("error", (error) =>
      reject(
        signal.aborted
          ? signal.reason
          : new RuntimeError("failed-precondition", `Cannot run ${runsc.binary}: ${error.message}`, {
              cause: error,
            }),
      ),
    );
    child.once("close", (code, signo) => {
      if (code === 0) return resolve();
      const why = said.trim().split("\n").at(-1) || `it ended with ${signo ?? `code ${code}`}`;
      reject(new RuntimeError("failed-precondition", `gVisor cannot ${args[0]}: ${why}`));
    });
  });
