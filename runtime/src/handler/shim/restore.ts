import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { SandboxRef } from "../handler.ts";
import type { ShimPod } from "./pod.ts";
import type { Shims } from "./shims.ts";

/**
 * How a gVisor pod is made from a checkpoint. runsc restores a sandbox as a whole: its first container must be made
 * and not yet started, then `runsc restore` takes the place of `runsc start` for it and for every other container,
 * and with the last of them all go on. Its shim has no call for that, so in such a pod it is given
 * bulkhead-restore (monitor/exec/reaper.c) as its runsc, which says the one for the other.
 *
 *   waiting ──▶ staged ──▶ restoring ──▶ (an ordinary pod)
 *      └──────────────────────────────────────▲
 *
 * waiting: the pod's holder was not started; the first container that starts starts it. staged: an image is in place.
 * restoring: the holder was restored, containers follow. Kept as files of the pod's state directory, which the
 * program reads too.
 */
const directory = "restore";
const at = (stateDir: string, name: string): string => join(stateDir, directory, name);
const waiting = "waiting";
const image = "image";
const count = "containers";
const config = "runsc.toml";

/** Makes a pod's own runsc; returns the configuration that names it, for every Create until the pod has started. */
export const prepareRestore = (
  stateDir: string,
  from: { program: string; runsc: string; configPath: string | undefined },
): string => {
  mkdirSync(at(stateDir, "."), { recursive: true, mode: 0o700 });
  const runtime = at(stateDir, "bulkhead-restore");
  symlinkSync(from.program, runtime);
  symlinkSync(from.runsc, at(stateDir, "runsc"));
  const options = from.configPath === undefined ? "" : readFileSync(from.configPath, "utf8");
  writeFileSync(at(stateDir, config), withBinary(options, runtime), { mode: 0o600 });
  writeFileSync(at(stateDir, waiting), "");
  return at(stateDir, config);
};

/** The shim's options with another runsc. A key of the top stands before every table. */
export const withBinary = (toml: string, binary: string): string => {
  const others = toml.split("\n").filter((line) => !/^\s*binary_name\s*=/.test(line));
  return `binary_name = ${JSON.stringify(binary)}\n${others.join("\n")}`;
};

/** True until the pod's holder was started. */
export const isWaiting = (stateDir: string): boolean => existsSync(at(stateDir, waiting));

/** The shim's options for a container that is made now; undefined: those of the handler. */
export const restoreConfig = (stateDir: string): string | undefined =>
  isWaiting(stateDir) ? at(stateDir, config) : undefined;

/** Puts the image in `images` in place, which holds that many containers beside the holder. */
export const stageImage = ({ id, stateDir }: SandboxRef, images: string, containers: number): void => {
  if (!isWaiting(stateDir))
    throw new RuntimeError(
      "failed-precondition",
      `gVisor restores a pod as a whole, before anything runs in it, and pod ${id} ${
        existsSync(at(stateDir, "."))
          ? "has started"
          : 'was not made for it: annotation bulkhead.dev/restore: "true" on the pod does that'
      }`,
    );
  if (existsSync(at(stateDir, image)))
    throw new RuntimeError(
      "failed-precondition",
      `gVisor restores a pod as a whole, and pod ${id} has a checkpoint already`,
    );
  writeFileSync(at(stateDir, count), String(containers));
  rmSync(at(stateDir, image), { force: true });
  symlinkSync(images, at(stateDir, image));
};

/** How many containers an image that is in place holds; undefined when none is. */
export const stagedCount = (stateDir: string): number | undefined =>
  existsSync(at(stateDir, image)) ? Number(readFileSync(at(stateDir, count), "utf8")) : undefined;

/** From now on containers are started. */
export const unstage = (stateDir: string): void => rmSync(at(stateDir, image), { force: true });

/** The holder of a pod that waited for a checkpoint starts, or is restored, with the first container. */
export const startHolder = async (shims: Shims, pod: ShimPod, signal: AbortSignal): Promise<void> => {
  if (!isWaiting(pod.stateDir)) return;
  pod.holderStart ??= (async () => {
    try {
      await pod.task.start({ id: pod.id }, { signal, timeoutMs: shims.startMs });
      rmSync(at(pod.stateDir, waiting), { force: true });
    } catch (error) {
      await restoreFailed(shims, pod, error);
      throw error;
    }
  })();
  await pod.holderStart;
};

/** A sandbox that was restored in part is of no use: the pod is lost, and kubelet makes another. */
export const restoreFailed = async (shims: Shims, pod: ShimPod, error: unknown): Promise<void> => {
  unstage(pod.stateDir);
  pod.quiet();
  pod.stuck = true;
  await pod.cleanUp(pod.id, pod.stateDir);
  shims.deps.events.sandboxExited(pod.id, `It could not be restored: ${messageOf(error)}`);
};
