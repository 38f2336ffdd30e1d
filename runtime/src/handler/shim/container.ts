import { rmSync } from "node:fs";
import { join } from "node:path";
import { hasCode } from "@bulkhead/lib/std/errors.ts";
import type { Resources } from "../../spec/oci.ts";
import type { ContainerLaunch, ContainerRef, HandlerState, Usage } from "../handler.ts";
import { bundleOf, groupedSpec, resourcesAny } from "./bundle.ts";
import { files, readMemory, writeState } from "./files.ts";
import { follow } from "./follow.ts";
import type { ShimPod } from "./pod.ts";
import { restoreConfig, restoreFailed, stagedCount, startHolder, unstage } from "./restore.ts";
import { containerStateOf, now, type Shims, SIGKILL } from "./shims.ts";
import type { ContainerState } from "./state.ts";
import { cgroupsOf, cgroupUsage, oomKills, usageOf } from "./stats.ts";
import { holdInput, holdOpen, makeStdio, removeStdio, startKeeper, stdioPaths } from "./stdio.ts";

/** Makes a container in the pod's shim, with its stdio, and takes it up. */
export async function createContainer(
  shims: Shims,
  launch: ContainerLaunch,
  signal: AbortSignal,
): Promise<HandlerState> {
  const { linux, pauseProgram } = shims.deps;
  const pod = await shims.podOf(launch.sandbox, signal);
  const options = shims.options(restoreConfig(pod.stateDir));
  const { id, stateDir } = launch;
  const { bundle, rootfs } = shims.writeBundle(
    launch,
    groupedSpec(launch.spec, "container", launch.sandbox.id),
  );
  const io = join(stateDir, files.io);
  const stdio = stdioPaths(io, launch);
  const state: ContainerState = {};
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    shims.killProcess(state.keeper);
    removeStdio(io);
    await shims.removeBundle(bundle);
  });
  // Where the shim cannot be told to: after that, it is too late to learn which it is.
  undo.defer(() => shims.removeCgroup(id, bundle));
  makeStdio(io, stdio, linux);
  const held = undo.use(holdOpen(stdio));
  const keeper = startKeeper(pauseProgram, stdio);
  state.keeper = { pid: keeper.pid, startTime: String(keeper.startTime) };
  writeState(stateDir, files.container, state);
  const output = shims.openOutput(launch);
  undo.defer(() => output.close());
  undo.defer(async () => {
    await pod.cleanUp(id, stateDir);
    void shims.removeLate(pod, id);
  });
  const request = { id, bundle, rootfs, terminal: launch.tty, ...stdio, ...(options ? { options } : {}) };
  const { pid } = await pod.log.explain(() =>
    pod.task.create(request, { signal, timeoutMs: shims.createMs }),
  );
  takeProcess(shims, pod, id, state, pid);
  writeState(stateDir, files.container, state);
  setMemoryLimit(shims, stateDir, launch.spec.linux?.resources);
  const input = holdInput(stdio);
  undo.move();
  follow(shims, pod, { id, stateDir, state, output, input, held });
  return state;
}

/**
 * Takes up the process that a shim names as a container's, with its cgroups; true where it is another than was known.
 * Before a container has started, runwasi's shims name themselves.
 */
const takeProcess = (shims: Shims, pod: ShimPod, id: string, state: ContainerState, pid: number): boolean => {
  const process = shims.named(pid, pod.state);
  const itself = process?.pid === pod.state.shim?.pid && shims.config.wall !== "vm";
  if (!process || itself || process.pid === state.process?.pid) return false;
  state.process = process;
  const cgroups = cgroupsOf(pid);
  if (cgroups) {
    state.cgroups = cgroups;
    // In one of its own nothing was killed before it.
    const kills = cgroups.memory.includes(id) ? 0 : oomKills(cgroups);
    if (kills !== undefined) state.oomKills = kills;
  }
  return true;
};

/** Returns what is to be recorded of the container, where its start told something new. */
export async function startContainer(
  shims: Shims,
  ref: ContainerRef,
  signal: AbortSignal,
): Promise<HandlerState | undefined> {
  const pod = await shims.podOf(ref.sandbox, signal);
  await startHolder(shims, pod, signal);
  const live = pod.containers.get(ref.id);
  const started = pod.log.explain(() => pod.task.start({ id: ref.id }, { signal, timeoutMs: shims.startMs }));
  if (live)
    live.starting = started.then(
      () => true,
      () => false,
    );
  let pid: number;
  try {
    ({ pid } = await started);
  } catch (error) {
    if (stagedCount(pod.stateDir) !== undefined) await restoreFailed(shims, pod, error);
    throw error;
  }
  if (!live) return undefined;
  const known = takeProcess(shims, pod, ref.id, live.state, pid);
  if (known) writeState(ref.stateDir, files.container, live.state);
  live.started = true;
  live.held?.[Symbol.dispose]();
  const count = stagedCount(pod.stateDir);
  const running = [...pod.containers.values()].filter((each) => each.started && !each.exit);
  if (count !== undefined && running.length >= count) unstage(pod.stateDir);
  return known ? live.state : undefined;
}

export async function killContainer(
  shims: Shims,
  ref: ContainerRef,
  signo: number,
  all: boolean,
  signal: AbortSignal,
): Promise<void> {
  const pod = await shims.podIfAlive(ref.sandbox, signal);
  const live = pod?.containers.get(ref.id);
  if (!pod || live?.exit) return;
  if (live && signo === SIGKILL) {
    if (!live.started && (await shims.neverStarted(pod, ref.id, signal)))
      return await shims.abandon(pod, live);
    return await shims.end(pod, live, all, signal);
  }
  await shims.kill(pod, ref.id, signo, all, signal);
}

/** Takes a container away, whatever state it is in. Idempotent. */
export async function removeContainer(shims: Shims, ref: ContainerRef, signal: AbortSignal): Promise<void> {
  const pod = await shims.podToEnd(ref.sandbox, signal);
  const bundle = bundleOf(ref.stateDir, ref.id);
  const live = pod?.containers.get(ref.id);
  if (pod) {
    await shims.deleteTask(pod, ref.id, live, signal);
    pod.containers.delete(ref.id);
    live?.output.close();
    live?.input?.[Symbol.dispose]();
    live?.held?.[Symbol.dispose]();
  } else await shims.deleteLeftovers(ref.id, bundle, signal);
  shims.early.close(ref.id);
  await shims.removeCgroup(ref.id, bundle);
  shims.killProcess(containerStateOf(ref).keeper);
  removeStdio(join(ref.stateDir, files.io));
  await shims.removeBundle(bundle);
  for (const file of [files.container, files.exit, files.memory])
    rmSync(join(ref.stateDir, file), { force: true });
}

export async function updateContainer(
  shims: Shims,
  ref: ContainerRef,
  resources: Resources | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (!resources) return;
  const pod = await shims.podOf(ref.sandbox, signal);
  await pod.task.update(
    { id: ref.id, resources: resourcesAny(resources) },
    { signal, timeoutMs: shims.answerMs },
  );
  setMemoryLimit(shims, ref.stateDir, resources);
}

/** What a container uses; undefined when it has ended or its shim is gone. */
export async function containerStats(
  shims: Shims,
  ref: ContainerRef,
  signal: AbortSignal,
): Promise<Usage | undefined> {
  const pod = await shims.podIfAlive(ref.sandbox, signal);
  if (!pod || pod.containers.get(ref.id)?.exit) return undefined;
  try {
    const { stats } = await pod.task.stats({ id: ref.id }, { signal, timeoutMs: shims.answerMs });
    const usage = stats && usageOf(stats, now());
    if (usage && (usage.cpuNanos > 0n || usage.memoryUsage > 0n)) return usage;
  } catch (error) {
    const silent = (["not-found", "unknown", "unimplemented"] as const).some((code) => hasCode(error, code));
    if (!silent) throw error;
  }
  // gVisor cannot always tell its containers apart: then the sandbox's figures, which are the pod's.
  return pod.state.cgroups && cgroupUsage(pod.state.cgroups, now());
}

/** Only gVisor's containers are held to their limit by us; see {@link follow}. */
const setMemoryLimit = (shims: Shims, stateDir: string, resources: Resources | undefined): void => {
  const limit = resources?.memory?.limit;
  if (shims.config.runsc && limit !== undefined)
    writeState(stateDir, files.memory, { ...readMemory(stateDir), limit: Math.max(0, limit) });
};
