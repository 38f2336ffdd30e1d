import { randomInt, randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { canaryImage, canaryNamespace, labels } from "@bulkhead/lib/api/group.ts";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { ContainerState, NamespaceMode, PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { killLeft } from "../processes.ts";
import { lookOutside, type Outside } from "./outside.ts";
import { type LogDirectory, logOf, outputOf } from "./own-output.ts";
import { roomFor, type StaticPods, standMs, startStaticCanary } from "./static-pod.ts";
import { parseView, type View, viewCommand } from "./wall.ts";

/**
 * A canary: a pod of the smallest image, started through the CRI exactly as a kubelet would, asked what it sees,
 * and removed. It proves that the handler works from pull to exec, or to logs where there is no exec, and tells how fast.
 */

export type CanaryResult = {
  view: View;
  /** What the node sees of it. */
  outside: Outside;
  /** Seconds from RunPodSandbox to the container running. */
  startSeconds: number;
};

/** How a canary runs on an engine that is not ours, which knows neither the image nor that the pod is to be hidden. */
export type Elsewhere = {
  /** The image's id: the digest of its configuration. */
  id: string;
  /** What a pod's author would write for it: CRI-O takes nothing but a name there. */
  name: string;
  /**
   * The engine is not to be told to stop a pod that it is just starting (CRI-O answers neither then): the canary waits
   * until the kubelet has looked, and begins right after that.
   */
  awaitsLook: boolean;
  /** Makes the engine pull it; resolves to what a container names it by. */
  pull(cri: CriClient, signal: AbortSignal): Promise<string>;
  /** For a handler that is too slow for a pod that the kubelet does not know; undefined where it takes no static pods. */
  staticPods(signal: AbortSignal): Promise<StaticPods | undefined>;
  /** The handlers of which that is known. */
  slow: Set<string>;
};

/** How long the command that looks may take, and to take the canary away. Seconds. */
export type CanaryDeadlines = { exec: number; remove: number };
const usual: CanaryDeadlines = { exec: 30, remove: 30 };

type CanaryOptions = {
  /**
   * Its pod's log directory, of which nothing is left. A kubelet that finds a dead container removes every file whose name
   * begins with the container's log path: of one without a path, those that stand in the node's root, /bin among them.
   */
  logs: LogDirectory;
  elsewhere?: Elsewhere;
  deadlines?: CanaryDeadlines | undefined;
  /**
   * A directory of the node, made where it is missing, that the canary gets read-only as the kubelet gives volumes:
   * under its own SELinux label. A node that cannot do that serves no pod.
   */
  volume?: string;
};

/** The canary's sandbox ended before its time, as when a kubelet ends a pod that it does not know. */
export class CanaryEnded extends RuntimeError {
  constructor(cause: unknown) {
    super("unavailable", `The canary's sandbox ended before the canary was done: ${messageOf(cause)}`, {
      cause,
    });
    this.name = "CanaryEnded";
  }
}

/**
 * Runs a canary on an engine whose kubelet sees it. A kubelet looks every two seconds (housekeepingPeriod) and ends
 * pods that it does not know, within a second for one that runs. A canary that starts right after such a look has
 * until the next one, so one that was ended is tried again at once. One that was ended twice is too slow for that, and the
 * kubelet itself is asked to run it, once, where it can be. `tryMs`: what one try may take; CRI-O may never answer a
 * StartContainer whose pod is being stopped.
 */
export async function runSeenCanary(
  cri: CriClient,
  handler: string,
  signal: AbortSignal,
  { tryMs, ...options }: CanaryOptions & { elsewhere: Elsewhere; tryMs: number },
): Promise<CanaryResult> {
  const { slow } = options.elsewhere;
  let own: string | undefined;
  for (let tries = 1; ; tries++) {
    if (own === undefined && (tries > 2 || slow.has(handler))) {
      const soon = AbortSignal.any([signal, AbortSignal.timeout(3 * tryMs)]);
      try {
        const result = await runKubelets(cri, handler, soon, options);
        if (result !== undefined) {
          slow.add(handler);
          return result;
        }
      } catch (error) {
        signal.throwIfAborted();
        slow.delete(handler);
        own = `; as a pod of the kubelet's own: ${messageOf(error)}`;
      }
    }
    const late = AbortSignal.timeout(tryMs);
    try {
      return await runCanary(cri, handler, AbortSignal.any([signal, late]), options);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof CanaryEnded || late.aborted)) throw error;
      if (tries === 6)
        throw new RuntimeError("unavailable", `${messageOf(error)}${own ?? ""}`, { cause: error });
    }
  }
}

/** Runs one canary under `handler`. Leaves nothing behind, whatever happens. */
export async function runCanary(
  cri: CriClient,
  handler: string,
  signal: AbortSignal,
  { logs, elsewhere, deadlines = usual, volume }: CanaryOptions,
): Promise<CanaryResult> {
  const { runtime, image: images } = cri;
  const name = elsewhere?.id ?? canaryImage;
  const image = { image: name, userSpecifiedImage: elsewhere?.name ?? name, runtimeHandler: handler };
  // By these the kubelet takes sandbox and container for one pod, and gives the container a second to end.
  const kubeletsOf = (uid: string) =>
    elsewhere === undefined
      ? {}
      : {
          "io.kubernetes.pod.uid": uid,
          "io.kubernetes.pod.name": `canary-${handler}`,
          "io.kubernetes.pod.namespace": canaryNamespace,
          "io.kubernetes.container.name": "canary",
        };
  const sandboxOf = (uid: string) => ({
    // The namespace's name cannot be that of a Kubernetes namespace: the runtime shows such pods only to a caller
    // that asks for their label, and the kubelet, which kills pods it does not know, never sees them.
    metadata: { name: `canary-${handler}`, namespace: canaryNamespace, uid, attempt: 0 },
    hostname: "canary",
    labels: { ...kubeletsOf(uid), [labels.canary]: handler },
    logDirectory: logs.node,
    linux: { securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } } },
  });
  const uid = randomUUID();
  const [sandbox, kubelets] = [sandboxOf(uid), kubeletsOf(uid)];
  const token = canaryToken();
  await removeCanaries(cri, handler, signal, elsewhere !== undefined);
  if (elsewhere !== undefined) image.image = await pulled(cri, elsewhere, handler, signal);
  // Without a pod, for there is none yet: the image's handler alone says whose image it is.
  else if ((await images.imageStatus({ image }, signal)).image === undefined)
    await images.pullImage({ image }, signal);
  await using undo = new AsyncDisposableStack();
  // A shim's own logs, too: gVisor's writes there.
  undo.defer(() => rm(logs.here, { recursive: true, force: true }));
  await mkdir(logs.here, { recursive: true, mode: 0o700 });
  // Undo has its own deadline: it must run when the probe's own is over.
  undo.defer(() =>
    removeCanaries(cri, handler, AbortSignal.timeout(deadlines.remove * 1000), elsewhere !== undefined),
  );
  if (elsewhere?.awaitsLook === true) await untilLook(cri, handler, sandboxOf(randomUUID()), signal);
  const startedAt = performance.now();
  // An engine cancels what it makes for a caller that goes away.
  const patience = elsewhere === undefined ? signal : later(signal, standMs);
  const request = { config: sandbox, runtimeHandler: handler };
  const { podSandboxId } = await runtime.runPodSandbox(request, patience);
  signal.throwIfAborted();
  try {
    const containerOf = (name: string, command: string[]) => ({
      podSandboxId,
      sandboxConfig: sandbox,
      config: {
        metadata: { name, attempt: 0 },
        image,
        command,
        logPath: logOf(name),
        labels: { ...kubelets, [labels.canary]: handler },
        mounts:
          volume === undefined
            ? []
            : [{ containerPath: "/volume", hostPath: volume, readonly: true, selinuxRelabel: true }],
        linux: { securityContext: { namespaceOptions: { pid: NamespaceMode.CONTAINER } } },
      },
    });
    const { containerId } = await runtime.createContainer(
      containerOf("canary", ["/bin/sleep", token]),
      signal,
    );
    await runtime.startContainer({ containerId }, signal);
    const { status } = await runtime.containerStatus({ containerId }, signal);
    const startSeconds = (performance.now() - startedAt) / 1000;
    if (status?.state !== ContainerState.CONTAINER_RUNNING) {
      throw new RuntimeError(
        "internal",
        `The canary's container ended at once with exit code ${status?.exitCode ?? "unknown"}: ${status?.message ?? ""}`,
      );
    }
    const said = await execute(cri, containerId, deadlines.exec, signal).catch((error: unknown) => {
      if (!hasCode(error, "unimplemented")) throw error;
      return outputOf(cri, containerOf("view", viewCommand), logs, signal);
    });
    const outside = await lookOutside([podSandboxId, containerId], token);
    // What ended while it was looked at was not seen.
    if (elsewhere !== undefined && (await hasEnded(cri, podSandboxId)))
      throw new Error("it was looked at too late");
    return { view: parseView(said), outside, startSeconds };
  } catch (error) {
    // A tenth of what its end may take: a virtual machine's takes longer.
    const within = deadlines.remove * 100;
    throw elsewhere !== undefined && (await endsSoon(cri, podSandboxId, within))
      ? new CanaryEnded(error)
      : error;
  }
}

/**
 * Runs one canary as the kubelet's own pod; undefined where it takes none or has no room. Leaves nothing behind, whatever
 * happens.
 */
async function runKubelets(
  cri: CriClient,
  handler: string,
  signal: AbortSignal,
  { elsewhere, deadlines = usual }: CanaryOptions & { elsewhere: Elsewhere },
): Promise<CanaryResult | undefined> {
  const pods = await elsewhere.staticPods(signal);
  if (pods === undefined || !(await roomFor(cri, pods, signal))) return undefined;
  const token = canaryToken();
  const id = await pulled(cri, elsewhere, handler, signal);
  const { image } = await cri.image.imageStatus({ image: { image: id, runtimeHandler: handler } }, signal);
  const reference = image?.repoDigests[0];
  if (reference === undefined)
    throw new RuntimeError("internal", "The engine has no name for the canary's image");
  const options = { image: reference, token, removeSeconds: deadlines.remove };
  await using canary = await startStaticCanary(cri, handler, pods, options, signal);
  const { podSandboxId, containerId, startSeconds } = canary;
  const said = await execute(cri, containerId, deadlines.exec, signal);
  const outside = await lookOutside([podSandboxId, containerId], token);
  if (await hasEnded(cri, podSandboxId)) throw new CanaryEnded(new Error("it was looked at too late"));
  return { view: parseView(said), outside, startSeconds };
}

/** No process of the node has this argument but the canary's own, if it is one. */
const canaryToken = (): string => `3600.${randomInt(2 ** 47)}`;

/** The canary's image on an engine that is not ours; resolves to what a container names it by. */
async function pulled(
  cri: CriClient,
  { id, name, pull }: Elsewhere,
  handler: string,
  signal: AbortSignal,
): Promise<string> {
  const image = { image: id, userSpecifiedImage: name, runtimeHandler: handler };
  return (await cri.image.imageStatus({ image }, signal)).image === undefined ? pull(cri, signal) : id;
}

/** Aborts `ms` after `signal` does. */
function later(signal: AbortSignal, ms: number): AbortSignal {
  const late = new AbortController();
  const wait = (): void => void setTimeout(() => late.abort(signal.reason), ms).unref();
  if (signal.aborted) wait();
  else signal.addEventListener("abort", wait, { once: true });
  return late.signal;
}

/** What the view's command says in the canary's container. */
async function execute(
  { runtime }: CriClient,
  containerId: string,
  seconds: number,
  signal: AbortSignal,
): Promise<string> {
  const request = { containerId, cmd: viewCommand, timeout: BigInt(seconds) };
  const { stdout, stderr, exitCode } = await runtime.execSync(request, signal);
  if (exitCode === 0) return Buffer.from(stdout).toString();
  throw new RuntimeError(
    "internal",
    `The canary's container cannot run a command: exit code ${exitCode}: ${Buffer.from(stderr).toString().trim()}`,
  );
}

/** Until the kubelet has ended a pod that it does not know. Where none looks, a few seconds. */
async function untilLook(
  cri: CriClient,
  handler: string,
  config: Parameters<CriClient["runtime"]["runPodSandbox"]>[0]["config"],
  signal: AbortSignal,
): Promise<void> {
  const { podSandboxId } = await cri.runtime.runPodSandbox({ config }, signal);
  await endsSoon(cri, podSandboxId, 5000, signal);
  await removeCanaries(cri, handler, signal);
}

/** A kubelet that ends a pod ends its containers first, and gives them a second. */
async function endsSoon(
  cri: CriClient,
  podSandboxId: string,
  withinMs: number,
  signal?: AbortSignal,
): Promise<boolean> {
  const end = performance.now() + withinMs;
  while (performance.now() < end) {
    if (await hasEnded(cri, podSandboxId)) return true;
    await sleep(50, undefined, { signal });
  }
  return false;
}

async function hasEnded({ runtime }: CriClient, podSandboxId: string): Promise<boolean> {
  const { status } = await runtime
    .podSandboxStatus({ podSandboxId }, AbortSignal.timeout(30_000))
    .catch(() => ({ status: undefined }));
  return status?.state !== PodSandboxState.SANDBOX_READY;
}

/**
 * Stops and removes every canary of `handler`, also those of a former life of the agent. `seen`: by a kubelet, which may
 * have ended one while its container was being started. Of Kata's shims (4.1) the Go one then refuses to kill that
 * container, for ever, and containerd to stop the pod, until the shim is killed; the Rust one leaves its hypervisor.
 */
export async function removeCanaries(
  cri: CriClient,
  handler: string,
  signal: AbortSignal,
  seen = false,
): Promise<void> {
  const { runtime } = cri;
  const { items } = await runtime.listPodSandbox(
    { filter: { labelSelector: { [labels.canary]: handler } } },
    signal,
  );
  const failures: string[] = [];
  for (const { id, metadata } of items) {
    // A pod of the cluster may carry any label; the namespace's name it cannot have.
    if (metadata?.namespace !== canaryNamespace) continue;
    const remove = async (): Promise<unknown> => {
      try {
        await runtime.stopPodSandbox({ podSandboxId: id }, signal);
        await runtime.removePodSandbox({ podSandboxId: id }, signal);
      } catch (error) {
        if (!hasCode(error, "not-found")) return error;
      }
      return undefined;
    };
    let error = await remove();
    if (error !== undefined) {
      // A kubelet may have been removing it at the same moment: an engine then misses what is gone meanwhile.
      await sleep(500, undefined, { signal });
      error = await remove();
    }
    if (seen && (await killLeft(id)))
      for (let tries = 0; error !== undefined && tries < 20; tries++) {
        // Until the engine has seen it go.
        await sleep(500, undefined, { signal });
        error = await remove();
      }
    if (error !== undefined) failures.push(messageOf(error));
  }
  if (failures.length > 0) {
    throw new RuntimeError("internal", `Cannot remove the canary of "${handler}": ${failures.join("; ")}`);
  }
}
