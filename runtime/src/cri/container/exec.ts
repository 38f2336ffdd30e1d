import { create } from "@bufbuild/protobuf";
import { ExecResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { requireRunning } from "../../container/state.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

/** Exec: the URL of the streaming server. */
export const exec =
  (runtime: Runtime): RuntimeMethods["exec"] =>
  async (request) => {
    const container = requireVisible(runtime, request.containerId);
    requireRunning(container, "execute a command in");
    const { cmd, tty, stdin, stdout, stderr } = request;
    if (tty && stderr)
      throw new RuntimeError(
        "invalid-argument",
        "Cannot have stderr and a terminal: a terminal has one output",
      );
    return create(ExecResponseSchema, {
      url: runtime.streaming.execUrl({ containerId: container.id, cmd, tty, stdin, stdout, stderr }),
    });
  };
