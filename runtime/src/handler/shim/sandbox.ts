import { rmSync } from "node:fs";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { socketPath } from "@bulkhead/lib/ttrpc/socket.ts";
import type { HandlerState, SandboxLaunch, SandboxRef } from "../handler.ts";
import { bundleOf, groupedSpec, writeBundle } from "./bundle.ts";
import { connectShim } from "./connection.ts";
import { files, writeState } from "./files.ts";
import { launchShim } from "./launch.ts";
import { launchedShim, processState, type Shims, SIGKILL, shimStateOf, within } from "./shims.ts";
import type { ShimState } from "./state.ts";
import { cgroupsOf } from "./stats.ts";

/** Launches the pod's shim and, in it, the pod's own container where it has one. */
export async function runSandbox(
  shims: Shims,
  launch: SandboxLaunch,
  signal: AbortSignal,
): Promise<HandlerState> {
  const { config, createMs, startMs, stopMs } = shims;
  // runsc would start it, with no interface at all, while the API server says that it has the node's address.
  if (config.runsc && config.runsc.network !== "host" && launch.namespaces.net === undefined)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot run the pod on the node's network: handler "${config.name}" is gVisor with a network of its own; drop hostNetwork or use a profile with handler.gvisor.network: host`,
    );
  const deadline = within(signal, createMs);
  await using undo = new AsyncDisposableStack();
  const bundle = writeBundle(launch.stateDir, launch.id, groupedSpec(launch.spec, "sandbox", launch.id));
  const ref: SandboxRef = { id: launch.id, stateDir: launch.stateDir, state: {} };
  undo.defer(async () => {
    const launched = launchedShim(bundle);
    await removeSandbox(shims, ref, AbortSignal.timeout(stopMs));
    // One that did not come so far that it could be asked to go.
    shims.killProcess(launched);
  });
  // A shim opens its log before it serves, and waits there for a reader, also after `start` has ended.
  using _log = shims.readLog(launch.id, bundle);
  const reply = await launchShim(shims.launch, launch.id, bundle, deadline);
  const holder = launch.rootfs !== "";
  const state: ShimState = {
    address: reply.address,
    version: reply.version,
    holder,
    netns: launch.namespaces.net ?? "",
  };
  writeState(launch.stateDir, files.shim, state);
  const probe = await connectShim(reply.address, reply.version, launch.id, deadline);
  try {
    state.version = probe.version;
    if (holder) {
      const { options } = shims;
      const { pid } = await probe.task.create(
        {
          id: launch.id,
          bundle,
          rootfs: shims.rootfsMounts(launch.rootfs),
          ...(options ? { options } : {}),
        },
        { signal: deadline, timeoutMs: createMs },
      );
      const process = processState(pid);
      if (process) state.process = process;
      const cgroups = cgroupsOf(pid);
      if (cgroups) state.cgroups = cgroups;
      await probe.task.start({ id: launch.id }, { signal: deadline, timeoutMs: startMs });
    }
    const { shimPid } = holder
      ? await probe.task.connect({ id: launch.id }, { signal: deadline, timeoutMs: 10_000 })
      : probe;
    const shim = processState(shimPid);
    if (shim) state.shim = shim;
  } finally {
    probe.connection.close();
  }
  writeState(launch.stateDir, files.shim, state);
  const pod = await shims.adopt(launch.id, launch.stateDir, state, deadline);
  void pod.watchHolder();
  undo.move();
  return state;
}

/** Ends the pod's containers, the pod and its shim. Idempotent. */
export async function stopSandbox(shims: Shims, ref: SandboxRef, signal: AbortSignal): Promise<void> {
  const { stopMs } = shims;
  const bundle = bundleOf(ref.stateDir, ref.id);
  const pod = await shims.podIfAlive(ref, signal);
  if (pod) {
    pod.quiet();
    const containers = [...pod.containers.values()];
    await Promise.all(containers.map((live) => shims.deleteTask(pod, live.id, live, signal)));
    if (pod.state.holder) {
      await shims
        .kill(pod, pod.id, SIGKILL, true, signal)
        .catch((error) => shims.failed(error, `Cannot kill pod ${pod.id}`));
      await pod.task.wait({ id: pod.id }, { signal, timeoutMs: stopMs }).catch(() => {});
      await shims.deleteTask(pod, pod.id, undefined, signal);
    }
    await Promise.all(containers.map((live) => pod.settle(live, 128 + SIGKILL)));
    await shims.end(pod);
  } else {
    await shims.gone(ref.id);
    shims.killProcess(shimStateOf(ref)?.shim);
    await shims.deleteLeftovers(ref.id, bundle, within(signal, stopMs));
  }
  await shims.removeCgroup(ref.id, bundle);
  // Without it a second stop finds nothing to do.
  rmSync(bundle, { recursive: true, force: true });
}

/** What is left of a pod that is stopped. Idempotent. */
export async function removeSandbox(shims: Shims, ref: SandboxRef, signal: AbortSignal): Promise<void> {
  await stopSandbox(shims, ref, signal);
  const state = shimStateOf(ref);
  // A shim that was killed leaves its socket.
  if (state) rmSync(socketPath(state.address), { force: true });
  rmSync(join(ref.stateDir, files.shim), { force: true });
  shims.forget(ref.id);
}
