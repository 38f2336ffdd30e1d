import { rmSync } from "node:fs";
import { join } from "node:path";
import type { ShimHandlerConfig } from "@bulkhead/lib/api/handler-config.ts";
import { hasCode, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { socketPath } from "@bulkhead/lib/ttrpc/socket.ts";
import type { HandlerState, SandboxLaunch, SandboxRef } from "../handler.ts";
import { bundleOf, groupedSpec, type RootfsMount } from "./bundle.ts";
import { connectShim } from "./connection.ts";
import { files, writeState } from "./files.ts";
import { requireHugepages } from "./huge-pages.ts";
import { removeKataRemains } from "./kata-remains.ts";
import { launchShim } from "./launch.ts";
import { processesIn } from "./processes.ts";
import { isWaiting, prepareRestore } from "./restore.ts";
import { sandboxClient, startSandbox } from "./sandbox-api.ts";
import { type Shims, SIGKILL, shimStateOf, within } from "./shims.ts";
import type { ShimState } from "./state.ts";
import { cgroupsOf } from "./stats.ts";

/** Launches the pod's shim and, in it, the pod's own container where it has one. */
export async function runSandbox(
  shims: Shims,
  launch: SandboxLaunch,
  signal: AbortSignal,
): Promise<HandlerState> {
  const { config, createMs, stopMs } = shims;
  // runsc would start it, with no interface at all, while the API server says that it has the node's address.
  if (config.runsc && config.runsc.network !== "host" && launch.namespaces.net === undefined)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot run the pod on the node's network: handler "${config.name}" is gVisor with a network of its own; drop hostNetwork or use a profile with handler.gvisor.network: host`,
    );
  if (config.wall === "vm" && launch.namespaces.net === undefined)
    throw new RuntimeError(
      "failed-precondition",
      `Cannot run the pod on the node's network: handler "${config.name}" is a virtual machine with a network of its own; drop hostNetwork or use another RuntimeClass`,
    );
  if (launch.awaitsRestore && !config.runsc)
    throw new RuntimeError("unimplemented", `Handler "${config.name}" restores no pods: gVisor's do`);
  requireHugepages(config.kata, launch.spec, shims.cgroupLayout);
  const deadline = within(signal, createMs);
  await using undo = new AsyncDisposableStack();
  const { bundle, rootfs } = shims.writeBundle(launch, groupedSpec(launch.spec, "sandbox", launch.id));
  const ref: SandboxRef = { id: launch.id, stateDir: launch.stateDir, state: {} };
  undo.defer(async () => {
    // One that did not come so far that it could be asked to go.
    const launched = processesIn(bundle);
    // What cannot be undone now is tried again when the pod is removed; the failure's own reason is what is told.
    await removeSandbox(shims, ref, AbortSignal.timeout(2 * stopMs)).catch((error) =>
      shims.failed(error, `Cannot undo the launch of pod ${launch.id}`),
    );
    for (const process of launched) shims.killProcess(process);
  });
  // A shim opens its log before it serves, and waits there for a reader, also after `start` has ended.
  using log = shims.readLog(launch.id, bundle);
  const state = await log.explain(() => startPod(shims, launch, { bundle, rootfs }, deadline));
  undo.move();
  return state;
}

const startPod = async (
  shims: Shims,
  launch: SandboxLaunch,
  { bundle, rootfs }: { bundle: string; rootfs: RootfsMount[] },
  deadline: AbortSignal,
): Promise<ShimState> => {
  const { config, createMs, startMs } = shims;
  const options = shims.options(
    launch.awaitsRestore && config.runsc
      ? prepareRestore(launch.stateDir, {
          program: shims.deps.restoreProgram,
          runsc: config.runsc.binary,
          configPath: config.configPath,
        })
      : undefined,
  );
  const reply = await launchShim(
    shims.launch,
    { id: launch.id, bundle, options, known: shims.knownForm },
    deadline,
  );
  const sandboxApi = config.sandboxApi === true;
  const holder = launch.rootfs !== "" && !sandboxApi;
  const state: ShimState = {
    address: reply.address,
    version: reply.version,
    ...(reply.protocol === "grpc" && { protocol: reply.protocol }),
    since: String(reply.since),
    ...(sandboxApi ? { sandboxApi } : {}),
    holder,
    netns: launch.namespaces.net ?? "",
  };
  writeState(launch.stateDir, files.shim, state);
  const probe = await connectShim(reply, launch.id, deadline);
  try {
    state.version = probe.version;
    /** The process that the shim names as the pod's. */
    const hold = (pid: number) => {
      const process = shims.named(pid, state);
      if (process) state.process = process;
      const cgroups = process && cgroupsOf(pid);
      if (cgroups) state.cgroups = cgroups;
    };
    if (sandboxApi) {
      hold(await startSandbox(sandboxClient(probe.connection), launch, bundle, shims, deadline));
    } else if (holder) {
      const request = { id: launch.id, bundle, rootfs, ...(options ? { options } : {}) };
      const { pid } = await probe.task
        .create(request, { signal: deadline, timeoutMs: createMs })
        .catch((error: unknown) => {
          throw hasCode(error, "unavailable") ? ended(config, error) : error;
        });
      hold(pid);
      if (!launch.awaitsRestore)
        // Before its start some name the shim.
        hold((await probe.task.start({ id: launch.id }, { signal: deadline, timeoutMs: startMs })).pid);
    }
    const { shimPid } = holder
      ? await probe.task.connect({ id: launch.id }, { signal: deadline, timeoutMs: shims.answerMs })
      : probe;
    const shim = shims.named(shimPid, state) ?? processesIn(bundle)[0];
    if (shim) state.shim = shim;
  } finally {
    probe.connection.close();
  }
  writeState(launch.stateDir, files.shim, state);
  const pod = await shims.adopt(launch.id, launch.stateDir, state, deadline);
  void pod.watchHolder();
  return state;
};

/** Kata's shim goes when no guest comes up, often before it has answered: it is not we who do not answer. */
const ended = ({ wall }: Pick<ShimHandlerConfig, "wall">, error: unknown): RuntimeError =>
  new RuntimeError(
    "failed-precondition",
    `The shim ended while it made the pod's sandbox${wall === "vm" ? "; Kata's says why in the node's journal (journalctl -t kata)" : ""}: ${messageOf(error)}`,
    { cause: error },
  );

/** Ends the pod's containers, the pod and its shim. Idempotent. */
export async function stopSandbox(shims: Shims, ref: SandboxRef, signal: AbortSignal): Promise<void> {
  const { stopMs } = shims;
  const bundle = bundleOf(ref.stateDir, ref.id);
  const pod = await shims.podToEnd(ref, signal);
  if (pod) {
    pod.quiet();
    const containers = [...pod.containers.values()];
    await Promise.all(containers.map((live) => shims.deleteTask(pod, live.id, live, signal)));
    if (pod.state.holder && isWaiting(pod.stateDir)) {
      // Neither kill nor delete does anything to what was never started.
      await pod.cleanUp(pod.id, pod.stateDir);
      pod.stuck = true;
    } else if (pod.state.holder) {
      if (!pod.hung) {
        await shims
          .kill(pod, pod.id, SIGKILL, true, signal)
          .catch((error) => shims.failed(error, `Cannot kill pod ${pod.id}`));
        await pod.task.wait({ id: pod.id }, { signal, timeoutMs: stopMs }).catch(() => {});
      }
      await shims.deleteTask(pod, pod.id, undefined, signal);
    }
    if (pod.state.sandboxApi && !pod.hung)
      await pod.sandbox
        .stopSandbox(
          { sandboxId: pod.id, timeoutSecs: Math.ceil(stopMs / 1000) },
          { signal, timeoutMs: stopMs },
        )
        .catch((error) => shims.failed(error, `Cannot stop the sandbox of pod ${pod.id}`));
    await Promise.all(containers.map((live) => pod.settle(live, 128 + SIGKILL)));
    await shims.shutdown(pod);
  } else {
    await shims.gone(ref.id);
    shims.killShim(ref, shimStateOf(ref));
    await shims.endMachine(ref.id, ref.stateDir);
    await shims.deleteLeftovers(ref.id, bundle, signal);
    shims.killProcess(shimStateOf(ref)?.process);
  }
  await shims.removeCgroup(ref.id, bundle);
  // Without it a second stop finds nothing to do.
  await shims.removeBundle(bundle);
}

/** What is left of a pod that is stopped. Idempotent. */
export async function removeSandbox(shims: Shims, ref: SandboxRef, signal: AbortSignal): Promise<void> {
  await stopSandbox(shims, ref, signal);
  const state = shimStateOf(ref);
  // A shim that was killed leaves its socket.
  if (state) rmSync(socketPath(state.address), { force: true });
  rmSync(join(ref.stateDir, files.shim), { force: true });
  if (shims.config.wall === "vm") removeKataRemains(ref.id);
  await shims.forget(ref.id);
}
