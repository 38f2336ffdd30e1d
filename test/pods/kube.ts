import { expect, vi } from "vitest";
import type { Cluster } from "../cluster/cluster.ts";

type Json = Record<string, unknown>;

/** A Pod as kubectl prints it, as far as the tests read it. */
export type Pod = {
  metadata: { name: string; uid: string };
  spec: { nodeName: string };
  status: {
    phase: string;
    podIP?: string;
    hostIP?: string;
    conditions?: { type: string; status: string }[];
    initContainerStatuses?: ContainerStatus[];
    containerStatuses?: ContainerStatus[];
  };
};
type State = {
  running?: { startedAt: string };
  waiting?: { reason: string; message?: string };
  terminated?: { exitCode: number; reason: string; message?: string; startedAt: string; finishedAt: string };
};
type ContainerStatus = {
  name: string;
  ready: boolean;
  restartCount: number;
  containerID: string;
  imageID: string;
  state: State;
  lastState: State;
};

/** kubectl in one namespace, with the few verbs that the tests need. */
export function inNamespace(cluster: Pick<Cluster, "kubectl">, namespace: string) {
  const kubectl = (argv: readonly string[], input?: string) =>
    cluster.kubectl(["-n", namespace, ...argv], input === undefined ? {} : { input });
  const get = async (name: string): Promise<Pod> =>
    JSON.parse(await kubectl(["get", "pod", name, "-o", "json"])) as Pod;
  const events = (name: string): Promise<string> =>
    kubectl(["get", "events", "--field-selector", `involvedObject.name=${name}`]);
  /** Polls a pod until it is as wanted; when it never is, fails with what it is. */
  const until = async (name: string, wanted: (pod: Pod) => boolean, seconds = 60): Promise<Pod> => {
    let last: Pod | undefined;
    try {
      return await vi.waitFor(
        async () => {
          last = await get(name);
          expect(wanted(last)).toBe(true);
          return last;
        },
        { timeout: seconds * 1000, interval: 200 },
      );
    } catch (error) {
      const said = await events(name).catch(() => "");
      // Events first: what a report cuts off is the end.
      throw new Error(
        `pod ${name} is not as wanted after ${seconds} s:\n${said}${JSON.stringify(last?.status)}`,
        { cause: error },
      );
    }
  };
  return {
    namespace,
    kubectl,
    get,
    until,
    /** What the API server heard of a pod, as lines. */
    events,
    apply: (object: Json) => kubectl(["apply", "-f", "-"], JSON.stringify(object)),
    /** Applies a pod and waits until its Ready condition is true. */
    run: async (pod: Json & { metadata: { name: string } }): Promise<Pod> => {
      await kubectl(["apply", "-f", "-"], JSON.stringify(pod));
      return until(pod.metadata.name, ready);
    },
    /** Deletes a pod and returns how its first container ended. A finalizer keeps the pod for as long as we look. */
    endOf: async (name: string, grace?: number) => {
      const hold = (finalizers: string[] | null) =>
        kubectl(["patch", "pod", name, "-p", JSON.stringify({ metadata: { finalizers } }), "--type=merge"]);
      await hold(["bulkhead.dev/test"]);
      try {
        const period = grace === undefined ? [] : [`--grace-period=${grace}`];
        await kubectl(["delete", "pod", name, "--wait=false", ...period]);
        return first(await until(name, (pod) => first(pod)?.state.terminated !== undefined))?.state
          .terminated;
      } finally {
        await hold(null);
      }
    },
    exec: (pod: string, ...argv: string[]) => kubectl(["exec", pod, "--", ...argv]),
    sh: (pod: string, script: string) => kubectl(["exec", pod, "--", "sh", "-c", script]),
    remove: (name: string) => kubectl(["delete", "pod", name, "--grace-period=1", "--wait=true"]),
    create: () => cluster.kubectl(["create", "namespace", namespace]),
    destroy: () => cluster.kubectl(["delete", "namespace", namespace, "--wait=true", "--timeout=120s"]),
  };
}
export type Namespace = ReturnType<typeof inNamespace>;

export const ready = (pod: Pod): boolean =>
  pod.status.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;

/** State of a pod's first container. */
export const first = (pod: Pod): ContainerStatus | undefined => pod.status.containerStatuses?.[0];

/** A pod with one container `main` that sleeps, unless told otherwise. */
export function podOf(
  name: string,
  runtimeClassName: string | undefined,
  image: string,
  container: Json = {},
  spec: Json = {},
): Json & { metadata: { name: string } } {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name },
    spec: {
      ...(runtimeClassName && { runtimeClassName }),
      restartPolicy: "Never",
      terminationGracePeriodSeconds: 1,
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      containers: [{ name: "main", image, command: ["sleep", "3600"], ...container }],
      ...spec,
    },
  };
}
