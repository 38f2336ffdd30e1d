import type { CriClient } from "@bulkhead/lib/cri/client.ts";
import { PodSandboxState } from "@bulkhead/lib/gen/cri_pb.js";
import { expect, test } from "vitest";
import { type StaticPods, startStaticCanary } from "./static-pod.ts";

const options = { image: "127.0.0.1:1/canary@sha256:0", token: "3600.1", removeSeconds: 1 };

/** A fake: an engine whose kubelet made what `sandboxes` says, and no container in it. */
const engine = (sandboxes: () => { id: string; state: PodSandboxState }[], removed: string[]): CriClient =>
  ({
    runtime: {
      listContainers: async () => ({ containers: [] }),
      listPodSandbox: async () => ({ items: sandboxes() }),
      removePodSandbox: async ({ podSandboxId }: { podSandboxId: string }) => void removed.push(podSandboxId),
    },
  }) as unknown as CriClient;

/** A fake: the kubelet's directory, and what the kubelet says at each look. */
const directory = (said: (string | undefined)[]) => {
  const calls: (string | object)[] = [];
  const pods: StaticPods = {
    put: async (pod) => void calls.push(pod),
    remove: async () => void calls.push("removed"),
    trouble: async () => said.shift(),
    maxPods: 110,
  };
  return { pods, calls };
};

test("a canary that the kubelet cannot run says why, and goes at once, with the sandbox that it had", async () => {
  const { pods, calls } = directory([undefined, "no such hypervisor"]);
  const removed: string[] = [];
  const state = (): PodSandboxState =>
    calls.includes("removed") ? PodSandboxState.SANDBOX_NOTREADY : PodSandboxState.SANDBOX_READY;
  const cri = engine(() => [{ id: "half", state: state() }], removed);
  const signal = AbortSignal.timeout(20_000);
  await expect(startStaticCanary(cri, "vm", pods, options, signal)).rejects.toThrow(
    "The kubelet cannot run it: no such hypervisor",
  );
  expect(calls).toEqual([
    expect.objectContaining({
      spec: expect.objectContaining({
        runtimeClassName: "vm",
        containers: [
          expect.objectContaining({ command: ["/bin/sleep", "3600.1"], imagePullPolicy: "Never" }),
        ],
      }),
    }),
    "removed",
  ]);
  expect(removed).toEqual(["half"]);
});

test("one that is given up while its guest boots is ended when that stands", async () => {
  const { pods, calls } = directory([]);
  const giveUp = new AbortController();
  let looks = 0;
  const cri = engine(() => {
    if (calls.includes("removed")) return [];
    return ++looks < 5 ? [] : [{ id: "guest", state: PodSandboxState.SANDBOX_READY }];
  }, []);
  const canary = startStaticCanary(cri, "vm", pods, options, giveUp.signal);
  giveUp.abort(new Error("stopped"));
  await expect(canary).rejects.toThrow();
  expect(looks).toBeGreaterThanOrEqual(5);
  expect(calls.at(-1)).toBe("removed");
});
