import { existsSync } from "node:fs";
import { join } from "node:path";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { connectSocket } from "@bulkhead/lib/ttrpc/socket.ts";
import * as z from "zod";
import { namespace } from "./command.ts";

const maxAnswer = 1 << 20;
const maxPieces = 100;

/** containerManager.Event of runsc's sandbox (runsc/boot/events.go), as far as we ask. */
const Answer = z.discriminatedUnion("success", [
  z.object({
    success: z.literal(true),
    result: z.object({
      event: z.object({
        data: z.object({ memory: z.object({ usage: z.object({ usage: z.number().optional() }) }) }),
      }),
    }),
  }),
  z.object({ success: z.literal(false), err: z.string() }),
]);

/** Bytes that a container of the sandbox uses, as gVisor's kernel counts them; throws when nobody can say. */
export const parseMemoryUsage = (text: string): number => {
  const answer = Answer.parse(JSON.parse(text));
  if (!answer.success) throw new RuntimeError("unavailable", `The sandbox answered: ${answer.err}`);
  return answer.result.event.data.memory.usage.usage ?? 0;
};

/** What a container of the sandbox uses. A `runsc events` process for it would cost some 50 ms of CPU each time. */
export const memoryUsage = async (
  root: string,
  sandboxId: string,
  containerId: string,
  signal: AbortSignal,
): Promise<number> =>
  parseMemoryUsage(await askSandbox(root, sandboxId, "containerManager.Event", containerId, signal));

/**
 * Asks the sandbox itself, over the socket that runsc's own commands use: one JSON value each way (gVisor, pkg/urpc).
 * The answer is its text, of a megabyte at most: whoever broke into the sandbox may have written it.
 */
export const askSandbox = async (
  root: string,
  sandboxId: string,
  method: string,
  arg: unknown,
  signal: AbortSignal,
): Promise<string> => {
  const name = `runsc-${sandboxId}.sock`;
  // The shim appends its namespace to the root. runsc goes elsewhere when the path is too long for a socket.
  const path = [join(root, namespace, name), join("/var/run", name)].find((each) => existsSync(each));
  if (path === undefined) throw new RuntimeError("not-found", `Sandbox ${sandboxId} has no control socket`);
  const socket = await connectSocket(path, signal);
  const cancel = () => socket.destroy(new RuntimeError("cancelled", `Sandbox ${sandboxId} did not answer`));
  signal.addEventListener("abort", cancel, { once: true });
  try {
    socket.write(JSON.stringify({ method, arg }));
    let text = "";
    let pieces = 0;
    for await (const chunk of socket.iterator({ destroyOnReturn: true })) {
      text += String(chunk);
      // Each piece may be the last, and is looked at with all before it: a sandbox could make that a day's work.
      if (text.length > maxAnswer || ++pieces > maxPieces) break;
      if (isWhole(text)) return text;
    }
    throw new RuntimeError("unavailable", `Sandbox ${sandboxId} gave no whole answer`);
  } finally {
    signal.removeEventListener("abort", cancel);
    socket.destroy();
  }
};

/** The connection stays open after an answer, and nothing else tells its end. */
const isWhole = (text: string): boolean => {
  if (!text.endsWith("}") && !text.endsWith("}\n")) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};
