import type { Condition } from "../api/runtime-profile.ts";

/** Conditions that are bad news when True; of all others False is. */
const wrongWhenTrue = new Set(["Degraded", "RolledBack"]);

/** A condition of a RuntimeProfile or NodeRuntime that needs somebody. That a profile only records is as it was asked to. */
export const isWrong = ({ type, status, reason }: Pick<Condition, "type" | "status" | "reason">): boolean =>
  type !== "Progressing" && reason !== "Audit" && status === (wrongWhenTrue.has(type) ? "True" : "False");
