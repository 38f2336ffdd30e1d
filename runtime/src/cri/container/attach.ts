import { create } from "@bufbuild/protobuf";
import { AttachResponseSchema } from "@bulkhead/lib/gen/cri_pb.js";
import { RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { requireRunning } from "../../container/state.ts";
import type { Runtime, RuntimeMethods } from "../runtime.ts";
import { requireVisible } from "./visible.ts";

/** Attach: the URL of the streaming server. */
export const attach =
  (runtime: Runtime): RuntimeMethods["attach"] =>
  async (request) => {
    const container = requireVisible(runtime, request.containerId);
    requireRunning(container, "attach to");
    const { tty, stdin, stdout, stderr } = request;
    if (tty && stderr)
      throw new RuntimeError(
        "invalid-argument",
        "Cannot have stderr and a terminal: a terminal has one output",
      );
    return create(AttachResponseSchema, {
      url: runtime.streaming.attachUrl({ containerId: container.id, tty, stdin, stdout, stderr }),
    });
  };
