import { accessSync, constants, mkdirSync } from "node:fs";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { ContainerRef, Handler, SandboxRef } from "../handler.ts";
import { attachTo, liveOf } from "./attach.ts";
import {
  containerStats,
  createContainer,
  killContainer,
  removeContainer,
  startContainer,
  updateContainer,
} from "./container.ts";
import { execInTask } from "./exec.ts";
import { dialGuest } from "./guest.ts";
import { portForwardRunsc } from "./port-forward.ts";
import { recoverPod } from "./recover.ts";
import { stageImage } from "./restore.ts";
import { checkpointContainer, checkpointPod } from "./runsc-checkpoint.ts";
import { removeSandbox, runSandbox, stopSandbox } from "./sandbox.ts";
import { sandboxUsage } from "./sandbox-api.ts";
import { now, type ShimHandlerDeps, Shims, shimStateOf } from "./shims.ts";
import { cgroupUsage } from "./stats.ts";

/**
 * Any containerd shim v2 (gVisor, Kata, runc) as a handler: one shim per pod, launched once with the sandbox, and
 * every container created through its address. So no shim needs to be told to group, and gVisor's needs no file
 * below /etc or /run/containerd. Disposing lets go of everything and leaves all of it running.
 */
export async function createShimHandler(
  config: ShimHandlerConfig,
  deps: ShimHandlerDeps,
): Promise<Handler & AsyncDisposable> {
  for (const program of [config.binary, deps.pauseProgram, ...(config.runsc ? [config.runsc.binary] : [])]) {
    try {
      accessSync(program, constants.X_OK);
    } catch (error) {
      throw new RuntimeError("failed-precondition", `Cannot run ${program}: ${messageOf(error)}`, {
        cause: error,
      });
    }
  }
  if (config.runsc?.overlayDirectory)
    mkdirSync(config.runsc.overlayDirectory, { recursive: true, mode: 0o700 });
  const shims = new Shims(config, deps);
  const { runsc } = config;
  return {
    name: config.name,
    kind: "shim",
    revision: config.revision ?? "",
    features: () => ({
      // A read-only mount is read-only down to its leaves in gVisor anyway.
      recursiveReadOnlyMounts: config.runsc !== undefined,
      userNamespaces: false,
      userNamespacesHostNetwork: false,
    }),
    runSandbox: (launch, signal) => runSandbox(shims, launch, signal),
    stopSandbox: (ref, signal) => stopSandbox(shims, ref, signal),
    removeSandbox: (ref, signal) => removeSandbox(shims, ref, signal),
    async create(launch, signal) {
      const state = await createContainer(shims, launch, signal);
      if (launch.restoreFrom !== undefined) stageImage(launch.sandbox, launch.restoreFrom, 1);
      return state;
    },
    start: (ref, signal) => startContainer(shims, ref, signal),
    kill: (ref, signo, all, signal) => killContainer(shims, ref, signo, all, signal),
    remove: (ref, signal) => removeContainer(shims, ref, signal),
    update: (ref, resources, signal) => updateContainer(shims, ref, resources, signal),
    ...(runsc && {
      checkpoint: async (
        ref: ContainerRef,
        directory: string,
        _: (file: string) => Promise<void>,
        signal: AbortSignal,
      ) => checkpointContainer(runsc, await shims.podOf(ref.sandbox, signal), ref, directory, signal),
      checkpointPod: async (
        ref: SandboxRef,
        containers: ContainerRef[],
        directory: string,
        signal: AbortSignal,
      ) => checkpointPod(runsc, await shims.podOf(ref, signal), containers, directory, signal),
      restores: "gvisor" as const,
      stageRestore: stageImage,
    }),
    stats: (ref, signal) => containerStats(shims, ref, signal),
    async sandboxStats(ref, signal) {
      const state = shimStateOf(ref);
      if (state?.sandboxApi) {
        const pod = await shims.podIfAlive(ref, signal);
        const said = pod && (await sandboxUsage(pod.sandbox, ref.id, signal, now()));
        if (said) return said;
      }
      const cgroups = state?.cgroups;
      return cgroups && cgroupUsage(cgroups, now());
    },
    async reopenLog(ref, signal) {
      const early = shims.early.get(ref.id);
      const output = early ?? liveOf(await shims.podOf(ref.sandbox, signal), ref).output;
      output.reopenLog();
    },
    async exec(ref, request, signal) {
      const pod = await shims.podOf(ref.sandbox, signal);
      const { id: containerId, stateDir } = ref;
      const { startMs, stopMs, answerMs } = shims;
      const context = { task: pod.task, containerId, stateDir, linux: deps.linux, startMs, stopMs, answerMs };
      return await execInTask(context, request, signal);
    },
    attach: (ref, signal) => attachTo(shims, ref, signal),
    async portForward(ref, port, signal) {
      if (config.runsc)
        return await portForwardRunsc(config.runsc, deps.host.socketDir, ref.id, port, signal);
      const netns = shimStateOf(ref)?.netns ?? "";
      return config.wall === "vm"
        ? await dialGuest(deps.linux.addresses(netns, "eth0"), port, signal)
        : await deps.network.dial(netns, port, signal);
    },
    recover: (ref, containers, signal, end) => recoverPod(shims, ref, containers, signal, end),
    [Symbol.asyncDispose]: () => shims.release(),
  };
}
