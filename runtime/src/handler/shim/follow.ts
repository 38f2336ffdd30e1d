import { files, readMemory, writeState } from "./files.ts";
import { holdMemoryLimit } from "./memory-limit.ts";
import type { NewContainer, ShimPod } from "./pod.ts";
import { memoryUsage } from "./runsc-control.ts";
import { type Shims, SIGKILL } from "./shims.ts";
import { memoryOf } from "./stats.ts";

/** Takes a container up that has not ended: its end is reported, and under gVisor its memory limit is held. */
export function follow(shims: Shims, pod: ShimPod, container: NewContainer): void {
  const live = pod.add(container);
  void live.ended.then(() => shims.releaseEnded(pod, live));
  const { config, log, stopMs } = shims;
  if (!config.runsc) return;
  const { root } = config.runsc;
  const { id, stateDir } = container;
  void holdMemoryLimit(
    {
      limit: () => readMemory(stateDir).limit,
      sandboxUsage: () => pod.state.cgroups && memoryOf(pod.state.cgroups),
      usage: (signal) => memoryUsage(root, pod.id, id, signal),
      kill: async () => {
        // First: the exit must find it.
        writeState(stateDir, files.memory, { ...readMemory(stateDir), exceeded: true });
        log.info({ container: id, pod: pod.id, handler: config.name }, "container is over its memory limit");
        await shims.kill(pod, id, SIGKILL, true, AbortSignal.timeout(stopMs));
      },
      ended: live.ended,
    },
    pod.released,
  ).catch((error) => shims.failed(error, `Cannot hold container ${id} to its memory limit`));
}
