import { create } from "@bufbuild/protobuf";
import { StopPodSandboxResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { type Pod, stopped, stopping } from "../../pod/state.ts";
import { killContainer } from "../container/kill.ts";
import { notify } from "../notify.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { endSilent } from "../take-up.ts";
import { releasePod } from "./release.ts";

/** StopPodSandbox: kills the containers and gives back network and namespaces. Succeeds for a pod that is gone. */
export const stopPodSandbox =
  (runtime: Runtime): RuntimeMethods["stopPodSandbox"] =>
  async (request, signal) => {
    const pod = runtime.pods.find(request.podSandboxId);
    if (pod) await runtime.locks.run(pod.id, signal, () => stopPod(runtime, pod, signal));
    return create(StopPodSandboxResponseSchema);
  };

/** The same for a pod whose lock is held. Once begun it is finished, also when the caller went away. */
export const stopPod = async (runtime: Runtime, pod: Pod, signal: AbortSignal): Promise<void> => {
  const before = runtime.pods.get(pod.id);
  if (before === undefined || before.state === "stopped") return;
  // From here on nothing new is let in; what is under way must be through before we count.
  runtime.pods.learn(pod.id, stopping);
  const seconds = pod.handler.deadlines.stop;
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(seconds * 1000)]);
  await runtime.activity.idle(pod.id, deadline);
  await endSilent(runtime, pod.id);
  await Promise.all(
    runtime.containers
      .list()
      .filter((container) => container.podId === pod.id)
      .map((container) => killContainer(runtime, container.id, deadline)),
  );
  let isLeft = false;
  await releasePod(runtime, pod.id, AbortSignal.timeout((seconds + 60) * 1000), (err) => {
    runtime.log.warn({ pod: pod.id, err }, "CNI DEL after an ADD that failed is tried again later");
    isLeft = true;
  });
  if (isLeft) runtime.former.again();
  else runtime.former.hurry();
  runtime.pods.learn(pod.id, stopped);
  notify(runtime, "stopped", pod.id, pod.id);
};
