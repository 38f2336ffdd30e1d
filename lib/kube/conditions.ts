import type { Condition } from "../api/runtime-profile.ts";

/**
 * `conditions` with `next` in its place, the others as they were. lastTransitionTime changes only with the status
 * (meta/v1 Condition); equal conditions come back unchanged, so that a caller can compare before it writes.
 */
export const setCondition = (
  conditions: readonly Condition[],
  next: Omit<Condition, "lastTransitionTime">,
  now: number,
): Condition[] => {
  const old = conditions.find((condition) => condition.type === next.type);
  const set: Condition = {
    ...next,
    lastTransitionTime:
      old && old.status === next.status
        ? old.lastTransitionTime
        : new Date(now).toISOString().replace(/\.\d+Z$/, "Z"),
  };
  return old
    ? conditions.map((condition) => (condition.type === next.type ? set : condition))
    : [...conditions, set];
};

/** The conditions whose status or reason differ between `before` and `after`: what is worth an Event. */
export const transitions = (before: readonly Condition[], after: readonly Condition[]): Condition[] =>
  after.filter((condition) => {
    const old = before.find((other) => other.type === condition.type);
    return !old || old.status !== condition.status || old.reason !== condition.reason;
  });
