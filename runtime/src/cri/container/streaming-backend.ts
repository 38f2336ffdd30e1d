import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { requireRunning } from "../../container/state.ts";
import type { ExecProcess, ExecRequest } from "../../handler/handler.ts";
import { requireReady } from "../../pod/state.ts";
import type { Process } from "../../spec/oci.ts";
import type { StreamingBackend } from "../../streaming/streaming.ts";
import { containerRef, type Runtime, sandboxRef } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

type Needs = Pick<Runtime, "containers" | "pods" | "handlers" | "stateDir">;

/** What runs behind streaming URLs. */
export const streamingBackend = (runtime: Needs): StreamingBackend => ({
  exec: (containerId, cmd, io, signal) => execIn(runtime, containerId, cmd, io, signal),
  attach: async (containerId, signal) => {
    const container = requireVisible(runtime, containerId);
    requireRunning(container, "attach to");
    const pod = runtime.pods.require(container.podId);
    return await runtime.handlers.running(pod.handler).attach(containerRef(runtime, pod, container), signal);
  },
  portForward: async (podId, port, signal) => {
    const pod = runtime.pods.require(podId);
    requireReady(pod, "forward a port");
    return await runtime.handlers.running(pod.handler).portForward(sandboxRef(runtime, pod), port, signal);
  },
});

/** Runs a command in a container, as the user and with the rights of its own process. */
export const execIn = async (
  runtime: Needs,
  containerId: string,
  cmd: readonly string[],
  io: Omit<ExecRequest, "process">,
  signal: AbortSignal,
): Promise<ExecProcess> => {
  const container = requireVisible(runtime, containerId);
  requireRunning(container, "execute a command in");
  if (cmd.length === 0) throw new RuntimeError("invalid-argument", "Cannot execute: no command");
  const pod = runtime.pods.require(container.podId);
  return await runtime.handlers
    .running(pod.handler)
    .exec(
      containerRef(runtime, pod, container),
      { ...io, process: execProcess(container.process, cmd, io.tty) },
      signal,
    );
};

/** The container's process with another command; a terminal of one's own has a type of its own. */
export const execProcess = (process: Process, cmd: readonly string[], tty: boolean): Process => ({
  ...process,
  args: [...cmd],
  terminal: tty,
  env:
    tty && !process.env.some((entry) => entry.startsWith("TERM="))
      ? [...process.env, "TERM=xterm"]
      : process.env,
});
