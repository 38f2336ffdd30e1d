import { rm } from "node:fs/promises";
import { join } from "node:path";
import { podFiles, unmountShm } from "../../pod/files.ts";
import { hold, type Pod } from "../../pod/state.ts";
import { podDir, type Runtime, sandboxRef } from "../runtime.ts";
import { networkPod } from "./network-pod.ts";

type Needs = Pick<Runtime, "pods" | "handlers" | "network" | "linux" | "stateDir" | "disks">;

/**
 * Gives back what a pod's record says it holds, but for the handler's own things, which containers still need
 * (see {@link removePod}). One way down for a failed start, StopPodSandbox, and what a crash left: each part is
 * struck off the record when it is gone, so that the next attempt goes on from there. With `onLeft` the network of a pod
 * that never had one holds nothing up (see Network.detach).
 */
export const releasePod = async (
  runtime: Needs,
  id: string,
  signal: AbortSignal,
  onLeft?: (error: unknown) => void,
): Promise<void> => {
  const pod = runtime.pods.get(id);
  if (pod === undefined || pod.state === "stopped") return;
  if (pod.held.sandbox)
    await runtime.handlers.running(pod.handler).stopSandbox(sandboxRef(runtime, pod), signal);
  const network = pod.held.network;
  if (network) {
    await runtime.network.detach(networkPod(runtime, pod), network.result, signal, onLeft);
    runtime.pods.learn(id, (each) => hold(each, { network: undefined }));
  }
  const dir = podDir(runtime, id);
  if (pod.held.shm) {
    await unmountShm(podFiles(dir, "pod").shm, runtime.linux);
    runtime.pods.learn(id, (each) => hold(each, { shm: undefined }));
  }
  if (pod.held.namespaces) {
    await runtime.network.removeNamespaces(join(dir, "namespaces"));
    runtime.pods.learn(id, (each) => hold(each, { namespaces: undefined }));
  }
};

/** Removes the last traces of a pod whose containers are gone. */
export const removePod = async (runtime: Needs, pod: Pod, signal: AbortSignal): Promise<void> => {
  if (pod.held.sandbox)
    await runtime.handlers.running(pod.handler).removeSandbox(sandboxRef(runtime, pod), signal);
  await runtime.disks.remove(pod.id);
  await rm(podDir(runtime, pod.id), { recursive: true, force: true });
  runtime.pods.delete(pod.id);
};
