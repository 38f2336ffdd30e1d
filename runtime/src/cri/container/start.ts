import { constants } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { StartContainerResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { annotate } from "@bulkhead/lib/tracing/span.ts";
import { blockedMount } from "../../container/mount-targets.ts";
import { type Container, started, startFailed } from "../../container/state.ts";
import type { HandlerState } from "../../handler/handler.ts";
import { timed } from "../../metrics.ts";
import { type Pod, requireReady } from "../../pod/state.ts";
import { notify } from "../notify.ts";
import { cleanup, containerDir, containerRef, now, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { afterTakeUp } from "../take-up.ts";
import { podAttributes } from "../trace.ts";
import { forgetRestore } from "./restore.ts";

const { SIGKILL } = constants.signals;

/** runsc says of a mount that cannot be made only that its helper gave up: the place is found here. */
const explained = async (
  runtime: Runtime,
  { handler }: Pod,
  { id, config }: Container,
  failure: unknown,
): Promise<unknown> => {
  if (handler.kind !== "shim" || handler.runsc === undefined) return failure;
  const mounts = config.mounts.filter(({ hostPath }) => hostPath !== "");
  const why = await blockedMount(join(containerDir(runtime, id), "rootfs"), mounts).catch(() => undefined);
  return why === undefined ? failure : new RuntimeError("unknown", why, { cause: failure });
};

/** StartContainer. One that cannot be started ends as exited with code 128 and reason StartError. */
export const startContainer =
  (runtime: Runtime): RuntimeMethods["startContainer"] =>
  async (request, signal) => {
    const { id, podId } = runtime.containers.require(request.containerId);
    await afterTakeUp(runtime, podId, signal);
    using _ = runtime.activity.begin(podId);
    await runtime.locks.run(id, signal, async () => {
      const container = runtime.containers.require(id);
      if (container.state !== "created")
        throw new RuntimeError(
          "failed-precondition",
          `Cannot start container "${id}": it is ${container.state}`,
        );
      const pod = runtime.pods.require(podId);
      annotate({
        ...podAttributes(pod.config.metadata),
        "k8s.container.name": container.config.metadata?.name,
      });
      requireReady(pod, "start a container");
      const handler = runtime.handlers.running(pod.handler);
      const ref = containerRef(runtime, pod, container);
      let state: HandlerState | undefined;
      // The caller's leaving does not end a start half-way: kubelet will look at the state.
      const deadline = AbortSignal.timeout(pod.handler.deadlines.start * 1000);
      try {
        state = await timed(runtime.metrics, pod.handler.name, "start", () => handler.start(ref, deadline));
      } catch (failure) {
        const error = await explained(runtime, pod, container, failure);
        runtime.containers.learn(id, (each) => startFailed(each, now(), messageOf(error)));
        runtime.exits.happened(id);
        notify(runtime, "stopped", id, podId);
        await handler
          .kill(ref, SIGKILL, true, cleanup())
          .catch((err) =>
            runtime.log.warn({ container: id, err }, "container that did not start could not be killed"),
          );
        throw error;
      } finally {
        await forgetRestore(runtime, id);
      }
      runtime.containers.learn(id, (each) => started(each, now(), state));
      notify(runtime, "started", id, podId);
    });
    return create(StartContainerResponseSchema);
  };
