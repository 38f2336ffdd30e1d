import { clone, create } from "@bufbuild/protobuf";
import {
  ContainerConfigSchema,
  LinuxContainerConfigSchema,
  type LinuxContainerResources,
  LinuxContainerResourcesSchema,
  UpdateContainerResourcesResponseSchema,
} from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { withResources } from "../../container/state.ts";
import { resourcesOf } from "../../spec/resources.ts";
import { containerRef, type Runtime, type RuntimeMethods } from "../runtime.ts";
import { limitsOf } from "./guest.ts";
import { requireVisible } from "./visible.ts";

/** UpdateContainerResources: what the request leaves at zero stays as it was. */
export const updateContainerResources =
  (runtime: Runtime): RuntimeMethods["updateContainerResources"] =>
  async (request, signal) => {
    const { id } = requireVisible(runtime, request.containerId);
    await runtime.locks.run(id, signal, async () => {
      const container = requireVisible(runtime, id);
      if (container.state === "exited")
        throw new RuntimeError("failed-precondition", `Cannot update container "${id}": it has exited`);
      const wanted = request.linux;
      if (wanted === undefined) return;
      const pod = runtime.pods.require(container.podId);
      const linux = clone(
        LinuxContainerConfigSchema,
        container.config.linux ?? create(LinuxContainerConfigSchema),
      );
      linux.resources = merged(linux.resources ?? create(LinuxContainerResourcesSchema), wanted);
      const config = clone(ContainerConfigSchema, container.config);
      config.linux = linux;
      const resources = resourcesOf(linux.resources, limitsOf(pod, runtime.host));
      const handler = runtime.handlers.running(pod.handler);
      await handler.update(containerRef(runtime, pod, container), resources, signal);
      runtime.containers.update(id, (each) => withResources(each, config, resources));
    });
    return create(UpdateContainerResourcesResponseSchema);
  };

const merged = (
  before: LinuxContainerResources,
  wanted: LinuxContainerResources,
): LinuxContainerResources => {
  const next = clone(LinuxContainerResourcesSchema, before);
  if (wanted.cpuPeriod !== 0n) next.cpuPeriod = wanted.cpuPeriod;
  if (wanted.cpuQuota !== 0n) next.cpuQuota = wanted.cpuQuota;
  if (wanted.cpuShares !== 0n) next.cpuShares = wanted.cpuShares;
  if (wanted.memoryLimitInBytes !== 0n) next.memoryLimitInBytes = wanted.memoryLimitInBytes;
  if (wanted.memorySwapLimitInBytes !== 0n) next.memorySwapLimitInBytes = wanted.memorySwapLimitInBytes;
  if (wanted.oomScoreAdj !== 0n) next.oomScoreAdj = wanted.oomScoreAdj;
  if (wanted.cpusetCpus !== "") next.cpusetCpus = wanted.cpusetCpus;
  if (wanted.cpusetMems !== "") next.cpusetMems = wanted.cpusetMems;
  if (wanted.hugepageLimits.length > 0) next.hugepageLimits = wanted.hugepageLimits;
  next.unified = { ...before.unified, ...wanted.unified };
  return next;
};
