import type { Runtime, RuntimeMethods } from "../runtime.ts";

/** GetContainerEvents: from now on, until the client leaves. */
export const getContainerEvents =
  (runtime: Pick<Runtime, "events">): RuntimeMethods["getContainerEvents"] =>
  (_request, signal) =>
    runtime.events.read(signal);
