import { join } from "node:path";
import type { Writable } from "node:stream";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import type { AttachSession, ContainerRef } from "../handler.ts";
import { stdinWriter } from "./exec.ts";
import { files } from "./files.ts";
import type { LiveContainer, ShimPod } from "./pod.ts";
import { type Shims, within } from "./shims.ts";
import { stdioPaths } from "./stdio.ts";

export const liveOf = (pod: ShimPod, ref: ContainerRef): LiveContainer => {
  const live = pod.containers.get(ref.id);
  if (!live) throw new RuntimeError("not-found", `Container ${ref.id} is not there`);
  return live;
};

/** Connects a client to a container's own stdio. */
export async function attachTo(shims: Shims, ref: ContainerRef, signal: AbortSignal): Promise<AttachSession> {
  const pod = await shims.podOf(ref.sandbox, signal);
  const live = liveOf(pod, ref);
  if (live.exit) throw new RuntimeError("failed-precondition", `Container ${ref.id} has exited`);
  const stdin = ref.stdin ? await openStdin(shims, pod, ref, signal) : undefined;
  const { detach, ...outputs } = live.output.attach();
  const close = () => {
    detach();
    stdin?.destroy();
  };
  signal.addEventListener("abort", close, { once: true });
  return {
    ...outputs,
    ...(stdin ? { stdin } : {}),
    resize: async (width, height) => {
      await pod.task.resizePty({ id: ref.id, width, height }, { timeoutMs: shims.answerMs });
    },
    close: () => {
      signal.removeEventListener("abort", close);
      close();
    },
  };
}

const openStdin = (shims: Shims, pod: ShimPod, ref: ContainerRef, signal: AbortSignal): Promise<Writable> => {
  const path = stdioPaths(join(ref.stateDir, files.io), ref).stdin;
  const halfClose = async () => {
    // A terminal's input does not end with a client: the shell behind it would.
    if (!ref.stdinOnce || ref.tty) return;
    pod.containers.get(ref.id)?.input?.[Symbol.dispose]();
    await pod.task.closeIO({ id: ref.id, stdin: true }, { timeoutMs: shims.answerMs });
  };
  return stdinWriter(path, halfClose, within(signal, shims.connectMs));
};
