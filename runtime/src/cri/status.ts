import { type ErrorCode, firstFailure, messageOf, RuntimeError } from "@bulkhead/lib/std/errors.ts";
import { status } from "@grpc/grpc-js";

const grpcCode = {
  "not-found": status.NOT_FOUND,
  "already-exists": status.ALREADY_EXISTS,
  "invalid-argument": status.INVALID_ARGUMENT,
  "failed-precondition": status.FAILED_PRECONDITION,
  "resource-exhausted": status.RESOURCE_EXHAUSTED,
  unavailable: status.UNAVAILABLE,
  "deadline-exceeded": status.DEADLINE_EXCEEDED,
  cancelled: status.CANCELLED,
  "permission-denied": status.PERMISSION_DENIED,
  unimplemented: status.UNIMPLEMENTED,
  unknown: status.UNKNOWN,
  internal: status.INTERNAL,
} satisfies Record<ErrorCode, status>;

/** Any error as a gRPC status: the only place of the runtime where the two meet. */
export const toStatus = (error: unknown): { code: status; details: string } => {
  const first = firstFailure(error);
  if (first instanceof RuntimeError) return { code: grpcCode[first.code], details: messageOf(error) };
  if (first instanceof DOMException && first.name === "AbortError")
    return { code: status.CANCELLED, details: "The call was cancelled" };
  if (first instanceof DOMException && first.name === "TimeoutError")
    return { code: status.DEADLINE_EXCEEDED, details: "The call took too long" };
  return { code: status.UNKNOWN, details: messageOf(error) };
};

/** Whether an answer is worth a warning: what is not there, and who left, are not. */
export const isFailure = (code: status): boolean =>
  code !== status.OK && code !== status.NOT_FOUND && code !== status.CANCELLED;

/** The name of a code, for logs, metrics and traces. */
export const statusName = (code: status): string => status[code] ?? String(code);
