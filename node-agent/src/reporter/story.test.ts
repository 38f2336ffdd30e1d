import { apiVersion, labels } from "@bulkhead/lib/api/group.ts";
import type { NodeRuntime } from "@bulkhead/lib/api/node-runtime.ts";
import { expect, test } from "vitest";
import { createStory } from "./story.ts";

const runtime = (traceparent: string | undefined, generation: number, observed?: number): NodeRuntime => ({
  ...{ apiVersion, kind: "NodeRuntime" },
  metadata: {
    ...{ name: "a", generation },
    ...(traceparent === undefined ? {} : { annotations: { [labels.traceparent]: traceparent } }),
  },
  spec: { profiles: [] },
  ...(observed === undefined ? {} : { status: { observedGeneration: observed } }),
});

test("A change's trace goes on until all is done about it", () => {
  const story = createStory();
  expect(story.parentOf(undefined)).toBeUndefined();
  expect(story.parentOf(runtime(undefined, 1))).toBeUndefined();
  expect(story.parentOf(runtime("one", 2, 1))).toBe("one");
  // Its own report is the first that says so, and others may follow.
  expect(story.parentOf(runtime("one", 2, 2))).toBe("one");
  story.through(runtime("one", 2, 2));
  expect(story.parentOf(runtime("one", 2, 2))).toBeUndefined();
  expect(story.parentOf(runtime("two", 3, 2))).toBe("two");
});

test("A report on the change before ends nothing of the next", () => {
  const story = createStory();
  story.parentOf(runtime("one", 2, 1));
  story.parentOf(runtime("two", 3, 2));
  story.through(runtime("one", 2, 2));
  expect(story.parentOf(runtime("two", 3, 2))).toBe("two");
});

test("An agent that begins anew goes on with a change that nobody was through with, and with no older one", () => {
  expect(createStory().parentOf(runtime("one", 2, 2))).toBeUndefined();
  expect(createStory().parentOf(runtime("one", 2, 1))).toBe("one");
  expect(createStory().parentOf(runtime("one", 1))).toBe("one");
});
