import { existsSync } from "node:fs";
import { join } from "node:path";
import { Status } from "@bulkhead/lib/gen/shim_types_v1_pb.js";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import type { ContainerRef, Exit, Recovered, SandboxRef } from "../handler.ts";
import { bundleOf } from "./bundle.ts";
import type { EarlyOutput } from "./early-outputs.ts";
import { files, readExit, readMemory, writeExit } from "./files.ts";
import { follow } from "./follow.ts";
import type { ShimPod } from "./pod.ts";
import { isWaiting, stagedCount } from "./restore.ts";
import { sandboxRuns } from "./sandbox-api.ts";
import { containerStateOf, now, type Shims, shimStateOf } from "./shims.ts";
import { oomKills } from "./stats.ts";
import { holdOpen, stdioPaths } from "./stdio.ts";

/** What a container is after a restart of the daemon. */
type Found = Exit | "created" | "running" | "unknown";

/**
 * Takes a pod and its containers up again after a restart of the daemon, or finds out how they ended. A shim that lives
 * and does not answer is left as it is ({@link Shims.takeUp}), or, with `end`, ended. What the containers write is read
 * meanwhile, and on where that fails.
 */
export const recoverPod = async (
  shims: Shims,
  ref: SandboxRef,
  containers: ContainerRef[],
  signal: AbortSignal,
  end = false,
): Promise<Recovered> => {
  const readAll = () => {
    for (const container of containers) shims.early.read(container);
  };
  readAll();
  try {
    return await shims.takeUp(ref, end, signal, (pod, deadline) => {
      // Of those that an attempt before had in its hands.
      readAll();
      return recoverWith(shims, ref, pod, containers, deadline);
    });
  } catch (error) {
    // Those that had been handed over already.
    readAll();
    throw error;
  }
};

const recoverWith = async (
  shims: Shims,
  ref: SandboxRef,
  pod: ShimPod | undefined,
  containers: ContainerRef[],
  signal: AbortSignal,
): Promise<Recovered> => {
  if (!pod) await shims.endMachine(ref.id, ref.stateDir);
  const found: Recovered["containers"] = new Map();
  const taken: Promise<void>[] = [];
  for (const container of containers) {
    const exit = readExit(container.stateDir) ?? (await exitOf(shims, pod, container, signal));
    if (exit === "created" || exit === "running") found.set(container.id, { state: exit });
    else if (exit === "unknown") found.set(container.id, { state: "unknown" });
    else found.set(container.id, { state: "exited", exit });
    const early = shims.early.take(container.id);
    if (!early) continue;
    const done = takeUp(shims, pod, container, exit, early);
    done.catch(() => {});
    taken.push(done);
  }
  // At a time, for the daemon's start waits: what outlived a container may hold its pipes.
  await Promise.all(taken);
  if (!pod) {
    await shims.deleteLeftovers(ref.id, bundleOf(ref.stateDir, ref.id), signal);
    shims.killProcess(shimStateOf(ref)?.process);
    return { sandboxAlive: false, containers: found };
  }
  const sandboxAlive = await holderRuns(shims, pod, signal);
  if (sandboxAlive) void pod.watchHolder();
  return { sandboxAlive, containers: found };
};

/** What the shim says of a container that this daemon did not see. */
const exitOf = async (
  shims: Shims,
  pod: ShimPod | undefined,
  ref: ContainerRef,
  signal: AbortSignal,
): Promise<Found> => {
  const state = containerStateOf(ref);
  const oomKilled = (): boolean =>
    readMemory(ref.stateDir).exceeded ||
    (state.cgroups !== undefined &&
      state.oomKills !== undefined &&
      (oomKills(state.cgroups) ?? state.oomKills) > state.oomKills);
  if (!pod) {
    const bundle = bundleOf(ref.stateDir, ref.id);
    if (!existsSync(bundle)) return "unknown";
    const end = await shims.deleteLeftovers(ref.id, bundle, signal);
    // runwasi's delete ends nothing.
    shims.killProcess(state.process);
    return { code: end ? end.code & 0xff : 255, finishedAt: now(), oomKilled: oomKilled() };
  }
  try {
    const { status, exitStatus, exitedAt } = await pod.task.state(
      { id: ref.id },
      { signal, timeoutMs: shims.answerMs },
    );
    if (status === Status.CREATED) return "created";
    if (status !== Status.STOPPED) return "running";
    const finishedAt = exitedAt ? exitedAt.seconds * 1_000_000_000n + BigInt(exitedAt.nanos) : now();
    return { code: exitStatus & 0xff, finishedAt, oomKilled: exitStatus !== 0 && oomKilled() };
  } catch (error) {
    if (hasCode(error, "not-found")) return "unknown";
    throw error;
  }
};

/** Goes on with a container's output, and with waiting for its end when it has not come. */
const takeUp = async (
  shims: Shims,
  pod: ShimPod | undefined,
  ref: ContainerRef,
  exit: Found,
  early: EarlyOutput,
): Promise<void> => {
  const { output } = early;
  // What has not started may not have opened its pipes yet.
  const held = exit === "created" ? holdOpen(stdioPaths(join(ref.stateDir, files.io), ref)) : undefined;
  early.held[Symbol.dispose]();
  const ended = typeof exit === "object";
  if (pod && !ended && exit !== "unknown") {
    follow(shims, pod, {
      id: ref.id,
      stateDir: ref.stateDir,
      state: containerStateOf(ref),
      output,
      ...(held ? { held } : {}),
    });
    return;
  }
  await output.drained(AbortSignal.timeout(5_000));
  if (!pod) return output.close();
  if (ended) {
    writeExit(ref.stateDir, exit);
    const { id, stateDir } = ref;
    const live = pod.addEnded({ id, stateDir, state: containerStateOf(ref), output, exit });
    void shims.releaseEnded(pod, live);
  } else output.close();
};

const holderRuns = async (shims: Shims, pod: ShimPod, signal: AbortSignal): Promise<boolean> => {
  if (pod.state.sandboxApi) return await sandboxRuns(pod.sandbox, pod.id, signal);
  if (!pod.state.holder) return true;
  try {
    const { status } = await pod.task.state({ id: pod.id }, { signal, timeoutMs: shims.answerMs });
    if (status === Status.CREATED) return isWaiting(pod.stateDir);
    // The daemon ended while it was restored: what it waits for will not come.
    if (stagedCount(pod.stateDir) !== undefined) return false;
    return status === Status.RUNNING || status === Status.PAUSED;
  } catch (error) {
    if (hasCode(error, "not-found")) return false;
    throw error;
  }
};
