import { hasCode, messageOf } from "@bulkhead/lib/std/errors.ts";

/**
 * What goes over the error stream at the end of exec and attach: a meta/v1 Status as JSON (protocol v4 and v5),
 * plain text before (remotecommand protocol, as kubectl and crictl read it).
 */
export type Outcome = { exitCode: number } | { error: unknown };

export function statusJson(outcome: Outcome): string {
  if ("exitCode" in outcome) {
    if (outcome.exitCode === 0) return JSON.stringify({ metadata: {}, status: "Success" });
    return JSON.stringify({
      metadata: {},
      status: "Failure",
      message: `command terminated with non-zero exit code: exit status ${outcome.exitCode}`,
      reason: "NonZeroExitCode",
      details: { causes: [{ reason: "ExitCode", message: String(outcome.exitCode) }] },
    });
  }
  const message = messageOf(outcome.error);
  const missing = hasCode(outcome.error, "not-found");
  return JSON.stringify({
    metadata: {},
    status: "Failure",
    message,
    reason: missing ? "NotFound" : "InternalError",
    details: { causes: [{ message }] },
    code: missing ? 404 : 500,
  });
}

/** Versions 1 to 3: nothing for success, else a sentence. */
export const statusText = (outcome: Outcome): string =>
  "exitCode" in outcome
    ? outcome.exitCode === 0
      ? ""
      : `command terminated with non-zero exit code: exit status ${outcome.exitCode}`
    : messageOf(outcome.error);
