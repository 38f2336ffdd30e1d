import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { labels, staticCanaryNamespace } from "@bulkhead/lib/api/group.ts";
import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { ContainerState, PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { killLeft } from "../processes.ts";

/**
 * A canary that the kubelet runs itself, as a static pod: one that stands in a file of its directory and that no API
 * server knows. It is for handlers whose pods take longer to start than a kubelet leaves a pod that it does not know.
 */

/** The kubelet's directory of static pods, and room for one more pod. */
export type StaticPods = {
  /** Has the kubelet run this pod; it ends the one that stood there before. */
  put(pod: object): Promise<void>;
  /** Has the kubelet end it. */
  remove(): Promise<void>;
  /** Why the pod of this uid does not run, by what the kubelet said last; undefined while it may be on its way. */
  trouble(uid: string, signal: AbortSignal): Promise<string | undefined>;
  /** Pods that the kubelet lets run at a time. */
  maxPods: number;
};

/** The pod as the kubelet made it. */
export type StaticCanary = {
  podSandboxId: string;
  containerId: string;
  /** Seconds from the file to the container running. */
  startSeconds: number;
} & AsyncDisposable;

/**
 * What a pod that is being made gets to stand before it is ended, in milliseconds: Kata's Rust shim leaves a guest for ever
 * whose boot is cancelled. It is within the agent's terminationGracePeriodSeconds.
 */
export const standMs = 30_000;

const uidLabel = "io.kubernetes.pod.uid";

/**
 * A kubelet that has no room for a static pod ends another pod for it, and one that has room for a last pod refuses the
 * next one that the scheduler sends.
 */
export const hasRoom = (running: number, maxPods: number): boolean => running < Math.floor(maxPods * 0.9);

/** Whether the node has room for one more pod that the scheduler knows nothing of. */
export async function roomFor(
  { runtime }: CriClient,
  { maxPods }: Pick<StaticPods, "maxPods">,
  signal: AbortSignal,
): Promise<boolean> {
  const state = { state: PodSandboxState.SANDBOX_READY };
  const { items } = await runtime.listPodSandbox({ filter: { state } }, signal);
  return hasRoom(items.length, maxPods);
}

/** The manifest of a canary (Pod v1) that runs `/bin/sleep TOKEN`. `image` has to be on the node. */
export const staticPod = (handler: string, uid: string, image: string, token: string): object => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: {
    name: `canary-${handler}`,
    namespace: staticCanaryNamespace,
    uid,
    labels: { [labels.canary]: handler },
  },
  spec: {
    runtimeClassName: handler,
    hostname: "canary",
    dnsPolicy: "Default",
    restartPolicy: "Never",
    terminationGracePeriodSeconds: 1,
    automountServiceAccountToken: false,
    enableServiceLinks: false,
    containers: [{ name: "canary", image, imagePullPolicy: "Never", command: ["/bin/sleep", token] }],
  },
});

/**
 * Has the kubelet run a canary of `handler`, until it is disposed of. `image`: by the name and digest that the engine
 * knows. `removeSeconds`: what the pod's end may take.
 */
export async function startStaticCanary(
  cri: CriClient,
  handler: string,
  pods: StaticPods,
  { image, token, removeSeconds }: { image: string; token: string; removeSeconds: number },
  signal: AbortSignal,
): Promise<StaticCanary> {
  const { runtime } = cri;
  const uid = randomUUID();
  let refused = false;
  const end = (): Promise<void> => endStaticCanary(cri, pods, { uid, refused, removeSeconds });
  await using undo = new AsyncDisposableStack();
  undo.defer(end);
  const begun = Date.now();
  await pods.put(staticPod(handler, uid, image, token));
  for (let looks = 1; ; looks++) {
    const filter = { labelSelector: { [uidLabel]: uid } };
    const { containers } = await runtime.listContainers({ filter }, signal);
    const [container] = containers;
    if (container?.state === ContainerState.CONTAINER_EXITED)
      throw new RuntimeError("internal", "The canary's container ended at once");
    if (container?.state === ContainerState.CONTAINER_RUNNING) {
      const { id: containerId, podSandboxId } = container;
      const { status } = await runtime.containerStatus({ containerId }, signal);
      const startSeconds = Math.max(0, Number((status?.startedAt ?? 0n) / 1_000_000n) - begun) / 1000;
      undo.move();
      return { podSandboxId, containerId, startSeconds, [Symbol.asyncDispose]: end };
    }
    if (looks % 20 === 0) {
      const trouble = await pods.trouble(uid, signal);
      refused = trouble !== undefined;
      if (refused) throw new RuntimeError("unavailable", `The kubelet cannot run it: ${trouble}`);
    }
    await sleep(100, undefined, { signal });
  }
}

/** Has the kubelet end a canary once it stands, and removes what is left of it. `refused`: it will not stand. */
export async function endStaticCanary(
  { runtime }: CriClient,
  pods: Pick<StaticPods, "remove">,
  { uid, refused, removeSeconds }: { uid: string; refused: boolean; removeSeconds: number },
): Promise<void> {
  const signal = AbortSignal.timeout(removeSeconds * 1000 + standMs);
  const sandboxes = async () =>
    (await runtime.listPodSandbox({ filter: { labelSelector: { [uidLabel]: uid } } }, signal)).items;
  // A kubelet that ends a pod while its guest boots cancels that.
  const stands = performance.now() + (refused ? 0 : standMs);
  while (performance.now() < stands && (await sandboxes()).length === 0) await sleep(100);
  await pods.remove();
  let left = await sandboxes();
  try {
    while (left.some(({ state }) => state === PodSandboxState.SANDBOX_READY)) {
      await sleep(100, undefined, { signal });
      left = await sandboxes();
    }
    // The kubelet would do so within a minute or two.
    for (const { id } of left)
      await runtime.removePodSandbox({ podSandboxId: id }, signal).catch((error: unknown) => {
        if (!hasCode(error, "not-found")) throw error;
      });
  } catch (error) {
    // What the kubelet cannot stop, because its shim refuses to be, it can when that is gone.
    for (const { id } of left) await killLeft(id);
    const what = `The kubelet has not ended the canary's pod ${uid} within ${removeSeconds} s`;
    throw new RuntimeError("unavailable", `${what}: ${messageOf(error)}`, { cause: error });
  }
}
