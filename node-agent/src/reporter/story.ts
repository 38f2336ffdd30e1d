import { labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";

/** To which trace belongs what is done about a NodeRuntime: to that of the reconcile that changed it, until all is done. */
export type Story = {
  /** The traceparent of the change that is under way; undefined: none, or nobody traces it. */
  parentOf(runtime: NodeRuntime | undefined): string | undefined;
  /** All is done about the NodeRuntime as it was then. What comes later is a story of its own. */
  through(runtime: NodeRuntime): void;
};

const traceparentOf = (runtime: NodeRuntime | undefined): string | undefined =>
  runtime?.metadata.annotations?.[labels.traceparent];

export const createStory = (): Story => {
  let seen: string | undefined;
  let open = false;
  return {
    parentOf: (runtime) => {
      const now = traceparentOf(runtime);
      if (now !== seen) {
        seen = now;
        // An agent that begins anew finds the annotation of a change that may be months old.
        open = (runtime?.status?.observedGeneration ?? -1) < (runtime?.metadata.generation ?? 0);
      }
      return open ? seen : undefined;
    },
    through: (runtime) => {
      if (traceparentOf(runtime) === seen) open = false;
    },
  };
};
